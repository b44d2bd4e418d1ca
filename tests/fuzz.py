"""
``python -m tests.fuzz``: every file format, truncated, with a flipped bit, and with another file in its place.

A damaged file must be refused in one line (:class:`InputError`) or read with the same result. Recipes are written by people
and logs by other programs, so they hold no checksum: for these only tracebacks count as failures.
"""

import hashlib
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dhmm_rl.data import Rollouts, collect, read_minari, write_minari
from dhmm_rl.errors import InputError
from dhmm_rl.files import run_checksum
from dhmm_rl.languages import LANGUAGES
from dhmm_rl.languages.options import find_language
from dhmm_rl.languages.run import LanguageRun
from dhmm_rl.model import DHMMGPT2, load_checkpoint, save_checkpoint
from dhmm_rl.pretraining.trainer import TrainingState
from dhmm_rl.recipes import EnvRecipe, load_recipes
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.environments import make_envs, make_tokenizer, wrap
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.callbacks import CHECKPOINTS, CLOCK, EVALUATIONS, Clock, save_best
from dhmm_rl.runs.evaluation import EvalSettings, EvaluationCallback
from dhmm_rl.runs.logs import make_logger, read_log
from dhmm_rl.runs.plots import plot_losses
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import AGENT, BEST_AGENT, read_best, read_checkpoint, save_agent
from dhmm_rl.tokens import Tokenizer

DAMAGES = 200
CHECKPOINT = Path(CHECKPOINTS) / "16"
LANGUAGE = Path("language/bubble-sort/languages/1")
ARRAYS = ("observations", "actions", "rewards", "starts", "terminated", "imitate", "checksums")
AGENT_TOML = """
description = "small"
policy = "DHMMPolicy"
n_envs = 2
normalize_reward = true
[model]
embed_size = 8
heads = 1
layers = 1
num_states = 2
window = 4
[ppo]
n_steps = 8
batch_size = 8
"""


class Format(NamedTuple):
    """
    :param path: file in a :class:`Folder`
    :param read: function that reads the file and returns its content
    :param checked: whether the file holds a checksum
    :param bound: whether the file names its run; a model does not, because any run can start from any model
    """

    path: Path
    read: Callable[[Path], Any]
    checked: bool = True
    bound: bool = True


def write_all(folder: Path, seed: int) -> None:
    """Write a run, rollouts and files of every other format into a folder."""
    folder.mkdir(parents=True)
    (folder / "agent.toml").write_text(AGENT_TOML, encoding="utf-8")
    (folder / "env.toml").write_text('description = "x"\nid = "CartPole-v1"\n[tokens]\nbins = 5\n', encoding="utf-8")
    env, recipe = load_recipes(str(folder / "env.toml"), str(folder / "agent.toml"))
    run = Run.create(folder / "runs", "ppo", env, recipe, seed, {"steps": 16, "pretrained": "none"})
    run.folder.rename(folder / "run")
    tokenizer = make_tokenizer(env, make_envs(env, 1, 0))
    tokenizer.save(folder / "tokenizer.json")
    torch.manual_seed(seed)
    model = DHMMGPT2.from_tokenizer(tokenizer, **recipe.model)
    save_checkpoint(folder / "pretrained.pt", model, tokenizer, {"env_steps": seed})
    agent = make_agent(recipe, wrap(make_envs(env, 2, seed, recipe), recipe, tokenizer, training=True), seed, "cpu", None)
    agent.learn(16)
    save_best(agent, folder / "run")
    (folder / "run" / CHECKPOINT).mkdir(parents=True)
    save_agent(agent, folder / "run" / CHECKPOINT / AGENT, folder / "run")
    clock = Clock(pretraining=float(seed))
    clock.marks = [1.5, seed + 2.5]
    clock.save(folder / "run" / CHECKPOINT, folder / "run")
    rng = np.random.default_rng(seed)
    results: dict[str, Any] = {
        "timesteps": np.array([8, 16 + seed]),
        "results": rng.random((2, 3)),
        "ep_lengths": rng.random((2, 3)),
    }
    np.savez(folder / "run" / CHECKPOINT / EVALUATIONS, **results, run=run_checksum(folder / "run") or "")
    rollouts = collect(make_envs(env, 2, seed), episodes=4, imitate=True, env_id="CartPole-v1", seed=seed)
    rollouts.save(folder / "rollouts")
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "datasets")
    write_minari(rollouts, "small/rollouts-v0")
    language = find_language("bubble-sort", LANGUAGES)
    training = LanguageRun.create(folder / "language", "bubble-sort", language, {}, TrainingSettings(), (9,), 5, seed)
    state = TrainingState(model, TrainingSettings(), training.folder / "training.pt")
    state.update_best(1.0 + seed, np.ones(2))
    state.save()
    with closing(make_logger(folder, "languages")) as logger:
        for step in range(3):
            logger.record("pretrain/steps", step)
            logger.record("pretrain/held_out_loss", 1.0 / (step + 1 + seed))
            logger.dump(step)


def digest(value: Any) -> Any:
    """Return the plain values of anything that was read, with checksums in place of arrays."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).data).hexdigest(), str(value.dtype), value.shape
    if isinstance(value, dict):
        return {str(key): digest(part) for key, part in value.items()}
    return [digest(part) for part in value] if isinstance(value, list | tuple) else str(value)


def read_model(folder: Path) -> Any:
    checkpoint = load_checkpoint(folder / "pretrained.pt")
    tokenizer = None if checkpoint.tokenizer is None else checkpoint.tokenizer.to_dict()
    return checkpoint.model.state_dict(), checkpoint.model.config, tokenizer, checkpoint.info


def read_agent(folder: Path, best: bool) -> Any:
    run = Run.open(folder / "run")
    saved = read_best(run.folder, "cpu") if best else read_checkpoint(run.folder / CHECKPOINT, "cpu")
    agent = saved.build(run.agent)
    statistics = {name: (rms.mean, rms.var, rms.count) for name, rms in (saved.statistics() or {}).items()}
    return agent.policy.state_dict(), agent.policy.optimizer.state_dict()["state"], agent.num_timesteps, statistics


def read_state(folder: Path) -> Any:
    torch.manual_seed(0)
    checkpoint = load_checkpoint(folder / "pretrained.pt")
    state = TrainingState(checkpoint.model, TrainingSettings(), folder / LANGUAGE / "training.pt")
    state.resume()
    return state.best_weights, state.step, state.best_loss, state.best_bits, state.stale, checkpoint.model.state_dict()


def read_rollouts(folder: Path) -> Any:
    rollouts = Rollouts.load(folder / "rollouts")
    return (
        [getattr(rollouts, name) for name in ARRAYS[:-1]],
        rollouts.observation_space,
        rollouts.action_space,
        rollouts.env_steps,
    )


def read_evaluations(folder: Path) -> Any:
    env = EnvRecipe("x", "x", "CartPole-v1")
    settings, checkpoint = EvalSettings(every=1, episodes=1), folder / "run" / CHECKPOINT
    found = EvaluationCallback(folder / "run", env, lambda count: make_envs(env, count, 0), Clock(), settings, checkpoint)
    return found.timesteps, found.returns, found.lengths, found.best


def read_clock(folder: Path) -> Any:
    clock = Clock(folder / "run" / CHECKPOINT)
    return clock.marks, clock.evaluating, clock.longest


def read_dataset(folder: Path) -> Any:
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "datasets")
    rollouts = read_minari("small/rollouts-v0", notice=lambda line: None)
    return rollouts.observations, rollouts.actions, rollouts.env_id, rollouts.observation_space, rollouts.action_space


def read_run(folder: Path) -> Any:
    run = Run.open(folder / "run")
    return {name: value for name, value in asdict(run).items() if name != "folder"}, read_agent(folder, best=True)


def read_language(folder: Path) -> Any:
    run = LanguageRun.open(folder / LANGUAGE)
    return {name: value for name, value in asdict(run).items() if name != "folder"}, read_state(folder)


def read_logs(folder: Path) -> Any:
    plot_losses(read_log(folder, "languages"), folder / "curve.png", "x")


FORMATS: dict[str, Format] = {
    "language model": Format(Path("pretrained.pt"), read_model, bound=False),
    "best agent": Format(Path("run") / BEST_AGENT, lambda folder: read_agent(folder, best=True)),
    "checkpoint's agent": Format(Path("run") / CHECKPOINT / AGENT, lambda folder: read_agent(folder, best=False)),
    "training state": Format(LANGUAGE / "training.pt", read_state),
    **{f"rollouts: {name}": Format(Path("rollouts") / f"{name}.npy", read_rollouts) for name in ARRAYS},
    "rollouts: description": Format(Path("rollouts/rollouts.json"), read_rollouts),
    "tokenizer": Format(Path("tokenizer.json"), lambda folder: Tokenizer.load(folder / "tokenizer.json").to_dict()),
    "run": Format(Path("run/run.json"), read_run),
    "run of a language": Format(LANGUAGE / "run.json", read_language),
    "evaluations": Format(Path("run") / CHECKPOINT / EVALUATIONS, read_evaluations),
    "clock": Format(Path("run") / CHECKPOINT / CLOCK, read_clock),
    "Minari metadata": Format(Path("datasets/small/rollouts-v0/data/metadata.json"), read_dataset),
    "recipe of an environment": Format(Path("env.toml"), lambda f: load_recipes(str(f / "env.toml"), "mlp"), checked=False),
    "recipe of an agent": Format(Path("agent.toml"), lambda f: load_recipes("TMaze-v0", str(f / "agent.toml")), checked=False),
    "log": Format(Path("progress_languages.csv"), read_logs, checked=False),
}


def outcome(what: Format, folder: Path, expected: Any) -> str:
    """Read a file that may be damaged, and return how that ended."""
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            found = digest(what.read(folder))
    except InputError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error!s:.100}"
    return "same" if found == expected else "different" if what.checked else "read"


def damage(original: bytes, others: list[bytes], kind: int, rng: np.random.Generator) -> bytes:
    """Truncate a file, flip one of its bits, or replace its content by that of another file."""
    if kind == 0:
        return original[: int(rng.integers(len(original)))]
    if kind == 1:
        changed = bytearray(original)
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    return others[int(rng.integers(len(others)))]


def fuzz(name: str, folder: Path, other: Path, damages: int, seed: int = 0) -> Counter[str]:
    """
    Damage one file at a time and count how reading it ended.

    :param folder: good files, see :func:`write_all`
    :param other: files of another run, with different content
    :param damages: number of damages; a fifth of them are swaps
    """
    what, rng = FORMATS[name], np.random.default_rng(seed)
    path = folder / what.path
    original, expected = path.read_bytes(), digest(what.read(folder))
    strangers = [(folder / each.path).read_bytes() for each in FORMATS.values() if each.path != what.path]
    strangers += [(other / what.path).read_bytes()] * 10 if what.bound else []
    found: Counter[str] = Counter()
    try:
        for number in range(damages):
            kind = (0, 1, 0, 1, 2)[number % 5]
            path.write_bytes(damage(original, strangers, kind, rng))
            found[outcome(what, folder, expected)] += 1
    finally:
        path.write_bytes(original)
    return found


def main() -> None:
    """Print a table. Exit with status 1 after a traceback, an error of several lines or a different result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, other = Path(temporary) / "good", Path(temporary) / "other"
        for seed, path in enumerate((folder, other)):
            with redirect_stdout(StringIO()):
                write_all(path, seed)
        faults = 0
        print(f"{'file':<28}{'refused':>9}{'same':>7}{'read':>7}{'faults':>8}")
        for name in FORMATS:
            found = fuzz(name, folder, other, DAMAGES)
            bad = {what: count for what, count in found.items() if what not in ("refused", "same", "read")}
            faults += sum(bad.values())
            print(f"{name:<28}{found['refused']:>9}{found['same']:>7}{found['read']:>7}{sum(bad.values()):>8}")
            for what, count in bad.items():
                print(f"    {count} x {what}")
    sys.exit(int(faults > 0))


if __name__ == "__main__":
    main()
