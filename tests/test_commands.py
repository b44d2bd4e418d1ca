"""The commands, run as processes like a user runs them; those that only print or refuse are run in the tests' own process."""

import dataclasses
import inspect
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl import collect, play, ppo, pretrain
from dhmm_rl.data import Rollouts, read_minari
from dhmm_rl.languages import __main__ as languages
from dhmm_rl.model import load_checkpoint
from dhmm_rl.recipes import EnvRecipe, environments

SHORT = """
description = "small and quick"
policy = "DHMMPolicy"
normalize_reward = true
n_envs = 2
[model]
embed_size = 16
heads = 2
num_states = 4
[pretrain]
episodes = 10
steps = 20
length = 4
eval_every = 10
[ppo]
n_steps = 64
batch_size = 64
n_epochs = 2
"""


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error::DeprecationWarning:dhmm_rl", "-m", f"dhmm_rl.{module}", *map(str, arguments)]


def run(cwd: Path, module: str, *arguments: object) -> str:
    done = subprocess.run(command(module, *arguments), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command in this process, which spares the seconds that a process of its own takes to import torch."""

    def run_module(cwd: Path, module: str, *arguments: str) -> Ended:
        monkeypatch.chdir(cwd)
        monkeypatch.syspath_prepend(str(cwd))  # python -m finds the modules of the current folder
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.resetwarnings()  # as in a process of its own, where warnings are printed
            warnings.simplefilter("ignore", DeprecationWarning)
            # The module was imported before: runpy warns that it now exists twice
            warnings.filterwarnings("ignore", "'dhmm_rl", RuntimeWarning)
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(f"dhmm_rl.{module}", run_name="__main__", alter_sys=True)
        status = ended.value.code
        assert status is None or isinstance(status, int)
        return Ended(status or 0, *capfd.readouterr())

    return run_module


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pretraining and PPO have been run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "short.toml").write_text(SHORT)
    run(folder, "pretrain", "--agent", "short.toml")
    run(folder, "ppo", "--agent", "short.toml", "--steps", 512)
    return folder


def test_pretrain_then_ppo_then_play(finished: Path) -> None:
    pretraining, training = finished / "runs/CartPole-v1/pretrain/1", finished / "runs/CartPole-v1/short/1"
    checkpoint = load_checkpoint(pretraining / "pretrained.pt")
    assert checkpoint.info["env_steps"] >= Rollouts.load(pretraining / "rollouts").steps
    assert json.loads((training / "run.json").read_text())["args"]["pretrained"].endswith("pretrain/1/pretrained.pt")
    result = json.loads((training / "result.json").read_text())
    assert result["pretraining_steps"] == checkpoint.info["env_steps"]
    assert result["ppo_steps"] == 512
    for name in ("curve.png", "best_agent.pt", "best_model.zip", "progress_ppo.csv", "pretrained.pt"):
        assert (training / name).stat().st_size > 0
    assert list(training.glob("events.out.tfevents*"))
    out = run(finished, "play", training, "--episodes", 3, "--video", "a.mp4")
    assert "mean return" in out
    assert "over 3 episodes" in out
    assert (finished / "a.mp4").read_bytes()[4:8] == b"ftyp"
    run(finished, "play", training, "--episodes", 1, "--language-model", "--sample", "--video", "b.gif")
    assert (finished / "b.gif").read_bytes()[:3] == b"GIF"
    assert run(finished, "play", training, "--episodes", 3) == run(finished, "play", training, "--episodes", 3)


@pytest.mark.parametrize(
    ("env", "agent", "algo"),
    [
        pytest.param("CartPoleNoVel-v1", "lstm", "recipe", marks=pytest.mark.slow),
        pytest.param("TMaze-v0", "lstm", "recipe", marks=pytest.mark.slow),
        pytest.param("CartPoleNoVel-v1", "mlp-framestack", "recipe", marks=pytest.mark.slow),
        ("Tiger-v0", "mlp-framestack", "recipe"),
        ("PendulumNoVel-v1", "short.toml", "sequence-ppo"),
        pytest.param("PendulumNoVel-v1", "short.toml", "ppo", marks=pytest.mark.slow),
        # Its recipe has settings that only SequencePPO knows
        pytest.param("TMaze-v0", "dhmm-gpt2", "ppo", marks=pytest.mark.slow),
    ],
)
def test_every_algorithm_is_trained_and_played(env: str, agent: str, algo: str, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(SHORT)
    run(tmp_path, "ppo", "--env", env, "--agent", agent, "--algo", algo, "--pretrained", "none", "--steps", 512)
    folder = tmp_path / "runs" / env / agent.removesuffix(".toml") / "1"
    played = run(tmp_path, "play", folder, "--episodes", 2)
    assert "mean return" in played
    assert played == run(tmp_path, "play", folder, "--episodes", 2)


def test_the_same_seed_gives_the_same_run(finished: Path) -> None:
    results = []
    for seed, root in ((7, "x"), (7, "y"), (8, "z")):
        arguments = ["--agent", "short.toml", "--steps", 256, "--seed", seed, "--runs", root]
        run(finished, "ppo", *arguments, "--eval-share", "inf", "--final-episodes", 10)  # whatever the machine's speed
        results.append(json.loads((finished / root / "CartPole-v1/short/1/result.json").read_text()))
        for name in ("training_seconds", "evaluation_seconds", "eval_seconds", "seed", "checksum"):
            del results[-1][name]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_rollouts_saved_before_and_teachers_are_sources(finished: Path) -> None:
    kept = finished / "runs/CartPole-v1/pretrain/1/rollouts"
    run(finished, "pretrain", "--agent", "short.toml", "--data", kept, "--runs", "again")
    infos = [load_checkpoint(finished / root / "CartPole-v1/pretrain/1/pretrained.pt").info for root in ("runs", "again")]
    assert infos[0].pop("seconds") > 0
    assert infos[1].pop("seconds") > 0
    assert json.dumps(infos[0]) == json.dumps(infos[1])
    DQN("MlpPolicy", "CartPole-v1", learning_starts=10).learn(50).save(finished / "teacher.zip")
    run(finished, "pretrain", "--agent", "short.toml", "--data", "teacher:teacher.zip", "--trust", "--runs", "taught")
    taught = load_checkpoint(finished / "taught/CartPole-v1/pretrain/1/pretrained.pt")
    assert taught.info["imitates"]
    assert not np.isnan(taught.info["bits"]).any()
    assert "mean return" in run(finished, "play", "taught/CartPole-v1/pretrain/1", "--language-model", "--episodes", 2)


def test_minari_datasets_are_written_read_and_mixed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(finished / "datasets"))
    PPO("MlpPolicy", "CartPole-v1").save(finished / "beginner.zip")
    beginner = ["--data", "teacher:beginner.zip", "--trust"]
    out = run(finished, "collect", *beginner, "--episodes", 8, "--to", "minari:cartpole/beginner-v0")
    assert "8 episodes" in out
    sources = ["--data", "minari:cartpole/beginner-v0@weight=2", "--data", "random@episodes=6", "--top", 0.5]
    run(finished, "pretrain", "--agent", "short.toml", *sources, "--runs", "mixed")
    folder = finished / "mixed/CartPole-v1/pretrain/1"
    info = load_checkpoint(folder / "pretrained.pt").info
    assert info["imitates"]
    assert len(Rollouts.load(folder / "rollouts-2")) == 6
    read = Rollouts.load(folder / "rollouts-2").env_steps + read_minari("cartpole/beginner-v0").steps
    assert info["env_steps"] == read


def kill_when(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Kill a process as soon as a file appears in its folder."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow  # tests/test_kills.py has a quick one
def test_killed_runs_resume(agent: Path, tmp_path: Path) -> None:
    agent.write_text(SHORT.replace("steps = 20", "steps = 400"))
    arguments = ["--agent", str(agent), "--steps", "8192", "--eval-share", "inf"]
    with subprocess.Popen(command("ppo", *arguments), cwd=tmp_path, start_new_session=True, text=True) as process:
        kill_when(process, tmp_path, "runs/CartPole-v1/short/1/training.pt")
    folder = tmp_path / "runs/CartPole-v1/short/1"
    assert not (folder / "pretrained.pt").exists()
    with subprocess.Popen(command("ppo", "--resume", folder), cwd=tmp_path, start_new_session=True, text=True) as process:
        kill_when(process, folder, "checkpoints/[0-9]*")
    assert not (folder / "result.json").exists()
    checkpoint = next((folder / "checkpoints").glob("[0-9]*"))
    steps_before = int(checkpoint.name)
    with np.load(checkpoint / "evaluations.npz") as kept:
        timesteps, results = kept["timesteps"], kept["results"]
    run(tmp_path, "ppo", "--resume", folder)
    logged = [(folder / name).read_text().splitlines() for name in ("progress_ppo.csv", "progress_ppo_2.csv")]
    first = int(logged[1][1].split(",")[logged[1][0].split(",").index("time/total_timesteps")])
    assert first == steps_before + 128, "it began anew"
    result = json.loads((folder / "result.json").read_text())
    assert result["ppo_steps"] == 8192
    with np.load(folder / "evaluations.npz") as evaluations:
        steps = evaluations["timesteps"]
        assert (steps[: len(timesteps)] == timesteps).all()
        assert (evaluations["results"][: len(results)] == results).all()
    assert (np.diff(steps) > 0).all()
    assert len(steps) == 3
    assert PPO.load(folder / "best_model.zip").num_timesteps > 0


def test_help_teaches(run_here: Callable[..., Ended]) -> None:
    """The help shows every option with its docstring."""
    for module in (pretrain, ppo, play, collect, languages):
        name = module.__name__.removesuffix(".__main__").rpartition(".")[2]
        out = run_here(Path.cwd(), name, "--help").stdout
        said = " ".join(out.replace("│", " ").split())
        source = inspect.getsource(module.Args)
        for field in dataclasses.fields(module.Args):
            assert field.name.replace("_", "-") in said, field.name
            documented = re.search(rf"\n    {field.name}: [^\n]*\n    \"\"\"([^\"]*)", source)
            assert documented is not None, field.name
            assert " ".join(documented[1].split())[:30] in said, field.name


BAD = {
    "unknown environment": ("ppo", ["--env", "CartPoel-v1"], "did you mean 'CartPole-v1'"),
    "unknown agent": ("ppo", ["--agent", "dhmm-gpt"], "did you mean 'dhmm-gpt2'"),
    "missing checkpoint": ("ppo", ["--pretrained", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
    "foreign checkpoint": ("ppo", ["--pretrained", "foreign.pt"], "cut short or of another program"),
    "truncated checkpoint": ("ppo", ["--pretrained", "truncated.pt"], "cut short"),
    "checkpoint of another build": ("ppo", ["--pretrained", "small.pt"], "the pretrained model has embed_size = 16"),
    "spaces that differ": ("ppo", ["--env", "Acrobot-v1", "--agent", "short.toml", "--pretrained", "small.pt"], "action"),
    "negative budget": ("ppo", ["--steps", "-5"], "steps is -5; it must be positive"),
    "negative seed": ("ppo", ["--seed", "-1"], "seed is -1; it must not be negative"),
    "seed beyond NumPy's": ("ppo", ["--seed", "4294967296"], "it must not be more than"),
    "a file for a folder": ("ppo", ["--agent", "short.toml", "--runs", "small.pt"], "Not a directory"),
    "no learning rate": ("pretrain", ["--learning-rate", "nan"], "learning_rate of pretraining is nan"),
    "a device without numbers": ("ppo", ["--device", "meta"], "cannot be used here"),
    "a teacher of other actions": (
        "pretrain",
        ["--env", "MountainCarContinuous-v0", "--data", "teacher:mountain.zip", "--trust"],
        "the teacher acts in",
    ),
    "a model of another version": ("ppo", ["--pretrained", "older.pt"], "of another version"),
    "no environments": ("ppo", ["--agent", "none.toml"], "n_envs = 0; it must be at least 1"),
    "a text for a table": ("ppo", ["--agent", "table.toml"], "model = 'large'; it must be a table"),
    "an unknown policy": ("ppo", ["--agent", "policy.toml", "--pretrained", "none"], "Policy MlpPolice unknown"),
    "no schedule": ("ppo", ["--agent", "schedule.toml", "--pretrained", "none"], "learning_rate = 'linn_0.1'"),
    "keywords that no environment takes": ("ppo", ["--env", "kwargs.toml"], "cannot be made"),
    "observations that are no numbers": (
        "ppo",
        ["--env", "nan.toml", "--agent", "mlp", "--steps", "64", "--quiet"],
        "nan in observations",
    ),
    "rewards that are no numbers": (
        "ppo",
        ["--env", "nan_reward.toml", "--agent", "short.toml", "--pretrained", "none", "--steps", "64", "--quiet"],
        "nan in rewards",
    ),
    "negative gradient steps": ("pretrain", ["--steps", "-5"], "steps of pretraining is -5"),
    "no episodes": ("pretrain", ["--episodes", "0"], "episodes is 0"),
    "no rollouts": ("pretrain", ["--data", "nowhere"], "holds no rollouts"),
    "NaN observation": ("pretrain", ["--data", "nan"], "observation[2] is NaN in row 3"),
    "rollouts of another environment": ("pretrain", ["--env", "Acrobot-v1", "--data", "kept"], "action"),
    "no teacher": ("pretrain", ["--data", "teacher:nowhere.zip"], "there is no teacher"),
    "an option that is none": ("pretrain", ["--data", "random@wait=2"], "known are weight, imitate, episodes, skip_bad"),
    "a share above 1": ("pretrain", ["--top", "3"], "top is 3; it is a share"),
    "the best of nothing": ("pretrain", ["--data", "kept", "--top", "0.5"], "see @imitate=yes"),
    "no Minari dataset": ("pretrain", ["--data", "minari:no-v0"], "there is no Minari dataset no-v0"),
    "no name for a dataset": ("collect", ["--to", "minari:a b"], "is not the name of a Minari dataset"),
    "a folder that is there": ("collect", ["--to", "kept"], "there is a kept already"),
    "foreign teacher": ("pretrain", ["--data", "teacher:foreign.pt", "--trust"], "is not a model"),
    "teacher of another environment": (
        "pretrain",
        ["--env", "Acrobot-v1", "--data", "teacher:agent.zip", "--trust"],
        "the teacher sees",
    ),
    "nothing to pretrain": ("pretrain", ["--agent", "mlp"], "no language model"),
    "an algorithm without tokens": ("ppo", ["--agent", "mlp", "--algo", "ppo"], "reads no tokens"),
    "no such device": ("ppo", ["--device", "abacus"], "cannot be used here"),
    "complete pretraining": ("pretrain", ["--resume", "runs/CartPole-v1/pretrain/1"], "is complete"),
    "complete run": ("ppo", ["--resume", "runs/CartPole-v1/short/1"], "is complete"),
    "pretraining resumed as PPO": ("ppo", ["--resume", "runs/CartPole-v1/pretrain/1"], "is of python -m dhmm_rl.pretrain"),
    "PPO resumed as pretraining": ("pretrain", ["--resume", "runs/CartPole-v1/short/1"], "is of python -m dhmm_rl.ppo"),
    "no run": ("play", ["nowhere"], "not the folder of a run"),
    "truncated agent": ("play", ["broken"], "cannot be read as a checkpoint"),
    "an older agent that is not trusted": ("play", ["older"], "add --trust"),
    "a truncated older agent": ("play", ["older", "--trust"], "cannot be read ("),
    "a teacher that is not trusted": ("pretrain", ["--data", "teacher:agent.zip"], "add --trust"),
    "a teacher on token streams": (
        "collect",
        ["--to", "of-streams", "--data", "teacher:runs/CartPole-v1/short/1"],
        "token streams",
    ),
    "no language model": ("play", ["broken", "--language-model"], "there is no checkpoint"),
    "video of no kind": ("play", ["runs/CartPole-v1/short/1", "--video", "a.avi"], "must end in .mp4 or .gif"),
}


NAN_ENV = """
import gymnasium as gym
import numpy as np

class Nan(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.full(1, np.nan, dtype=np.float32), 0.0, False, False, {}

class NanReward(Nan):
    def step(self, action):
        return np.zeros(1, dtype=np.float32), float("nan"), False, False, {}

gym.register("Nan-v0", Nan, disable_env_checker=True)
gym.register("NanReward-v0", NanReward, disable_env_checker=True)
"""


@pytest.fixture(scope="module")
def bad_things(finished: Path) -> Path:
    training = finished / "runs/CartPole-v1/short/1"
    checkpoint = (training / "pretrained.pt").read_bytes()
    (finished / "small.pt").write_bytes(checkpoint)
    (finished / "truncated.pt").write_bytes(checkpoint[: len(checkpoint) // 2])
    (finished / "foreign.pt").write_text("something else")
    agent = (training / "best_agent.pt").read_bytes()
    PPO("MlpPolicy", "CartPole-v1").save(finished / "agent.zip")
    PPO("MlpPolicy", "MountainCar-v0").save(finished / "mountain.zip")
    content = torch.load(training / "pretrained.pt")
    del content["weights"]["head"]
    torch.save(content, finished / "older.pt")
    for name, of, by in (
        ("none", "n_envs = 2", "n_envs = 0"),
        ("table", "[model]\nembed_size = 16\nheads = 2\nnum_states = 4", 'model = "large"'),
        ("policy", '"DHMMPolicy"', '"MlpPolice"'),
        ("schedule", "n_steps = 64", 'n_steps = 64\nlearning_rate = "linn_0.1"'),
    ):
        assert of in SHORT
        (finished / f"{name}.toml").write_text(SHORT.replace(of, by))
    (finished / "kwargs.toml").write_text('description = "x"\nid = "CartPole-v1"\n[kwargs]\nsticks = 2\n')
    for name, id_ in (("nan", "Nan-v0"), ("nan_reward", "NanReward-v0")):
        (finished / f"{name}.toml").write_text(f'description = "x"\nid = "nan_env:{id_}"\n')
    (finished / "nan_env.py").write_text(NAN_ENV)
    (finished / "broken").mkdir()
    (finished / "broken/run.json").write_bytes((training / "run.json").read_bytes())
    (finished / "broken/best_agent.pt").write_bytes(agent[: len(agent) // 2])
    (finished / "older").mkdir()
    (finished / "older/run.json").write_bytes((training / "run.json").read_bytes())
    (finished / "older/best_model.zip").write_bytes((training / "best_model.zip").read_bytes()[:5000])
    rollouts = Rollouts.load(finished / "runs/CartPole-v1/pretrain/1/rollouts")
    rollouts.save(finished / "kept")
    rollouts.save(finished / "nan")
    values = np.load(finished / "nan/observations.npy")
    values[3, 2] = np.nan
    np.save(finished / "nan/observations.npy", values)
    return finished


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_ends_in_one_line_and_status_2(
    what: str, bad_things: Path, run_here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, arguments, message = BAD[what]
    before = contents(bad_things)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(bad_things / "datasets"))
    ended = run_here(bad_things, module, *arguments)
    assert ended.status == 2, ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    after = contents(bad_things)
    assert {name: after[name] for name in before} == before


def test_ppo_builds_environments_twice_to_train_and_to_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.toml").write_text(SHORT)
    builds: list[int] = []

    def count_builds(env: EnvRecipe, n_envs: int, *args: Any) -> VecEnv:
        builds.append(n_envs)
        return make_vec_env(env, n_envs, *args)

    make_vec_env = environments._make_vec_env
    monkeypatch.setattr(environments, "_make_vec_env", count_builds)
    for pretrained, agent in (("new", str(tmp_path / "short.toml")), ("none", "mlp")):
        builds.clear()
        options: dict[str, Any] = {"steps": 256, "eval_share": math.inf, "eval_episodes": 3, "final_episodes": 4}
        ppo.main(ppo.Args(agent=agent, pretrained=pretrained, runs=tmp_path, quiet=True, **options))
        n_envs = 2 if agent != "mlp" else 8
        assert builds == [n_envs, 3]
