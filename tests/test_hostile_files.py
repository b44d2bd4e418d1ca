"""Files that try to run code when a command reads them: none can, unless the user gives --trust."""

import base64
import contextlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dhmm_rl import collect, play, ppo, pretrain
from dhmm_rl.data import collect as collect_rollouts
from dhmm_rl.errors import InputError
from dhmm_rl.files import read_json
from dhmm_rl.languages import __main__ as languages
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.environments import make_envs, wrap
from dhmm_rl.runs.callbacks import CHECKPOINTS, EVALUATIONS, Clock, save_best
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import AGENT, BEST_AGENT, BEST_PICKLE, BEST_ZIP, save_agent

MARKER = "code-was-run"
STEPS = "16"
AGENT_TOML = """
description = "small"
algorithm = "PPO"
policy = "MlpPolicy"
n_envs = 2
normalize_observation = true
[ppo]
n_steps = 8
batch_size = 8
"""


class Bomb:
    """An object that creates the marker, a folder, when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


def hostile_zip(path: Path) -> None:
    """Write an SB3 zip with one more entry. It is for another environment, so a command that trusts it ends soon."""
    buffer = io.BytesIO()
    PPO("MlpPolicy", "MountainCar-v0", n_steps=8, batch_size=8).save(buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name == "data":
                code = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Bomb())).decode()}
                data = json.dumps(json.loads(data) | {"bomb": code}).encode()
            bad.writestr(name, data)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def hostile_checkpoint(path: Path) -> None:
    hostile_zip(path.parent / "model.zip")
    hostile_pickle(path.parent / "vecnormalize.pkl")


def hostile_torch(path: Path) -> None:
    torch.save({"format": "dhmm-rl agent 1", "weights": Bomb()}, path)


def hostile_old_torch(path: Path) -> None:
    torch.save({"format": "dhmm-rl agent 1", "weights": Bomb()}, path, _use_new_zipfile_serialization=False)


def hostile_array(path: Path) -> None:
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)


def hostile_npz(path: Path) -> None:
    np.savez(path, timesteps=np.array([Bomb()], dtype=object), results=np.zeros((1, 1)), ep_lengths=np.zeros((1, 1)))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and rollouts, all files intact."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "agent.toml").write_text(AGENT_TOML)
    env, recipe = load_recipes("CartPole-v1", str(folder / "agent.toml"))
    run = Run.create(folder / "runs", "ppo", env, recipe, 0, {"steps": 16, "pretrained": "none"})
    venv = make_envs(env, 2, 0, recipe)
    agent = make_agent(recipe, wrap(venv, recipe, None, training=True), 0, "cpu", None)
    agent.learn(16)
    save_best(agent, run.folder)
    checkpoint = run.folder / CHECKPOINTS / STEPS
    checkpoint.mkdir(parents=True)
    save_agent(agent, checkpoint / AGENT)
    Clock().save(checkpoint, run.folder)
    collect_rollouts(make_envs(env, 2, 0), episodes=4, imitate=True).save(folder / "rollouts")
    return folder


@pytest.fixture
def here(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, in which the command runs."""
    shutil.copytree(good, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "here"


RUN = Path("runs/CartPole-v1/agent/1")


def act(**options: Any) -> None:
    play.main(play.Args(RUN, episodes=1, **options))


def act_as_older(**options: Any) -> None:
    (RUN / BEST_AGENT).unlink(missing_ok=True)
    act(**options)


def resume(**options: Any) -> None:
    ppo.main(ppo.Args(resume=RUN, quiet=True, **options))


def resume_older(**options: Any) -> None:
    (RUN / CHECKPOINTS / STEPS / AGENT).unlink(missing_ok=True)
    resume(**options)


def record(source: str) -> Callable[..., None]:
    return lambda **options: collect.main(collect.Args("to", data=source, episodes=2, n_envs=2, quiet=True, **options))


def record_older(**options: Any) -> None:
    (RUN / BEST_AGENT).unlink(missing_ok=True)
    record(f"teacher:{RUN}")(**options)


def learn(source: str) -> Callable[..., None]:
    return lambda **options: pretrain.main(pretrain.Args(data=(source,), steps=1, quiet=True, **options))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content))


def edited_run(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda path: edit(path, change)


def minari_dataset(with_spaces: bool) -> Callable[[Path], None]:
    """Write a dataset that names os.mkdir as its environment."""

    def write(_: Path) -> None:
        record_to = collect.Args("minari:small/good-v0", episodes=2, n_envs=2, quiet=True)
        collect.main(record_to)
        path = Path(os.environ["MINARI_DATASETS_PATH"]) / "small/good-v0/data/metadata.json"

        def change(metadata: dict[str, Any]) -> None:
            spec = json.loads(metadata["env_spec"]) | {"entry_point": "os:mkdir", "kwargs": {"path": MARKER}}
            metadata["env_spec"] = json.dumps(spec)
            metadata.pop("dhmm_rl_checksum")
            if not with_spaces:
                del metadata["observation_space"]

        edit(path, change)

    return write


CKPT = RUN / CHECKPOINTS / STEPS
Way = tuple[Callable[[Path], None], Path, Callable[..., None]]
NEED_TRUST: dict[str, Way] = {
    "an older run's best_model.zip": (hostile_zip, RUN / BEST_ZIP, act_as_older),
    "an older run's checkpoint": (hostile_checkpoint, CKPT / "model.zip", resume_older),
    "a teacher's zip": (hostile_zip, Path("teacher.zip"), record("teacher:teacher.zip")),
    "a teacher's zip, to learn from": (hostile_zip, Path("teacher.zip"), learn("teacher:teacher.zip")),
    "an older run as a teacher": (hostile_zip, RUN / BEST_ZIP, record_older),
    "an older checkpoint's statistics": (hostile_checkpoint, CKPT / "vecnormalize.pkl", resume_older),
}
NEVER: dict[str, Way] = {
    "a zip in the place of the best agent": (hostile_zip, RUN / BEST_AGENT, act),
    "a pickle in the place of the best agent": (hostile_pickle, RUN / BEST_AGENT, act),
    "code in the best agent": (hostile_torch, RUN / BEST_AGENT, act),
    "code in the best agent, in torch's older format": (hostile_old_torch, RUN / BEST_AGENT, act),
    "best_vecnormalize.pkl next to the best agent": (hostile_pickle, RUN / BEST_PICKLE, act),
    "best_model.zip next to the best agent": (hostile_zip, RUN / BEST_ZIP, act),
    "code in a checkpoint's agent": (hostile_torch, CKPT / AGENT, resume),
    "a pickle in the place of a checkpoint's agent": (hostile_pickle, CKPT / AGENT, resume),
    "objects in evaluations.npz": (hostile_npz, CKPT / EVALUATIONS, resume),
    "code in the language model": (hostile_torch, RUN / "pretrained.pt", lambda: act(language_model=True)),
    "code in a model to start from": (
        hostile_torch,
        Path("model.pt"),
        lambda: ppo.main(ppo.Args(pretrained="model.pt", steps=8, quiet=True)),
    ),
    "a run as a teacher": (hostile_torch, RUN / BEST_AGENT, record(f"teacher:{RUN}")),
    "vecnormalize.pkl next to a run that is a teacher": (hostile_pickle, RUN / "vecnormalize.pkl", record(f"teacher:{RUN}")),
    "objects in observations": (hostile_array, Path("rollouts/observations.npy"), record("rollouts")),
    "objects in starts": (hostile_array, Path("rollouts/starts.npy"), record("rollouts")),
    "objects in checksums": (hostile_array, Path("rollouts/checksums.npy"), record("rollouts")),
    "a Minari dataset without a space": (minari_dataset(False), Path("x"), record("minari:small/good-v0")),
    "a Minari dataset's environment": (minari_dataset(True), Path("x"), record("minari:small/good-v0")),
    "a recipe's activation function": (
        edited_run(lambda run: run["agent"]["ppo"].update(policy_kwargs={"activation_fn": "os:mkdir"})),
        RUN / "run.json",
        act,
    ),
    "a recipe's policy": (edited_run(lambda run: run["agent"].update(policy="os:mkdir")), RUN / "run.json", act),
    "a recipe's optimizer": (
        edited_run(lambda run: run["agent"]["ppo"].update(policy_kwargs={"optimizer_class": "os:mkdir"})),
        RUN / "run.json",
        act,
    ),
}

RUN_JSON: dict[str, tuple[str, Any]] = {
    "a command by a wrapper of the standard library": ("wrappers", {"pydoc:pipepager": {"cmd": f"mkdir {MARKER}"}}),
    "a function as a wrapper": ("wrappers", {"os:mkdir": {"mode": 0o777}}),
    "a wrapper of the current folder": ("wrappers", {"hostile_module:Wrapper": {}}),
    "an environment of the current folder": ("id", "hostile_module:Evil-v0"),
    "an environment by class": ("id", "hostile_module:Evil"),
}
NEVER |= {
    what: (edited_run(lambda run, key=key, value=value: run["env"].update({key: value})), RUN / "run.json", act)  # type: ignore[misc]
    for what, (key, value) in RUN_JSON.items()
}


def hostile_language(path: Path) -> None:
    """Write a run of a language that a module of the current folder defines."""
    run = {"command": "languages", "name": "hostile_module:Language", "language": {}, "model": {}, "settings": {}}
    path.write_text(json.dumps(run | {"beyond": [], "instances": 1, "seed": 0}), encoding="utf-8")


NEVER["a language of the current folder"] = (
    hostile_language,
    Path("language/run.json"),
    lambda: languages.main(languages.Args(resume=Path("language"))),
)


def plant(way: Way) -> None:
    write, path, _ = way
    path.parent.mkdir(exist_ok=True, parents=True)
    Path("hostile_module.py").write_text(f"import os\nos.mkdir({MARKER!r})\n", encoding="utf-8")
    write(path)
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("what", NEED_TRUST)
def test_a_file_that_can_run_code_does_so_only_with_trust(what: str, here: Path) -> None:
    plant(NEED_TRUST[what])
    with pytest.raises(InputError, match="--trust") as raised:
        NEED_TRUST[what][2]()
    assert "\n" not in str(raised.value)
    assert not Path(MARKER).exists()
    with contextlib.suppress(Exception):  # what the hostile file then does to the command does not matter
        NEED_TRUST[what][2](trust=True)
    assert Path(MARKER).exists(), "this file is not hostile: the test shows nothing"


@pytest.mark.parametrize("what", NEVER)
def test_a_file_of_our_own_formats_never_runs_code(what: str, here: Path) -> None:
    plant(NEVER[what])
    with contextlib.suppress(InputError):  # refused in a line, or not read at all
        NEVER[what][2]()
    assert not Path(MARKER).exists()


def test_statistics_next_to_a_teachers_zip_are_read_only_with_trust(here: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).save("teacher.zip")
    hostile_pickle(Path("vecnormalize.pkl"))
    with pytest.raises(InputError, match="--trust"):
        record("teacher:teacher.zip")()
    assert not Path(MARKER).exists()
    with pytest.raises(InputError, match="cannot be read"):
        record("teacher:teacher.zip")(trust=True)
    assert Path(MARKER).exists()
