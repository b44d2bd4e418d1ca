"""From rollouts to a pretrained language model of an environment's streams."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from dhmm_rl.data import Rollouts, StreamWindows, collect
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.model import DHMMGPT2, load_checkpoint, save_checkpoint
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.fitting import by_array, table, take
from dhmm_rl.tokens.pictures import SHOWN, image_parts, save_reconstruction
from dhmm_rl.training.environments import make_envs, make_tokenizer
from dhmm_rl.training.language_model import Trained, TrainingSettings, frequency_bits, train_language_model
from dhmm_rl.training.logs import make_logger
from dhmm_rl.training.runs import Run, pretraining_runs

DEFAULT_EPISODES = 200
TEACHERS: tuple[type[BaseAlgorithm], ...] = (RecurrentPPO, MaskablePPO, PPO, A2C, DQN, SAC, TD3, DDPG)


def pretrain(
    run: Run,
    data: str = "random",
    *,
    episodes: int | None = None,
    settings: TrainingSettings | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Path:
    """
    Collect or read rollouts, train a language model on them, and keep it in the run. Resumes where it was interrupted.

    :param run: whose folder takes the rollouts, the logs and the checkpoint
    :param data: ``random``; the folder of rollouts saved before; or ``teacher:PATH``, an SB3 model's zip
    :param episodes: how many to collect; the agent recipe's when ``None``
    :param settings: of the training; the agent recipe's when ``None``
    :return: the checkpoint
    :raises InputError: for data that cannot be used
    """
    if not run.agent.reads_tokens:
        raise InputError(f"the agent {run.agent.name} has no language model to pretrain; dhmm-gpt2 has")
    settings = settings or training_settings(run.agent)
    settings.check()
    rollouts = get_rollouts(run, data, episodes, progress)
    if len(rollouts) < 2:
        raise InputError("pretraining needs at least 2 episodes, one of them held out; there is 1")

    order = np.random.default_rng(run.seed).permutation(len(rollouts))
    held_out_count = max(1, round(settings.held_out * len(rollouts)))
    venv = make_envs(run.env, 1, run.seed)
    tokenizer = make_tokenizer(run.env, venv, rollouts)
    venv.close()
    keep_fitting(run, tokenizer, rollouts, progress)

    def windows(episodes: NDArray[np.int64], dither: int | None = None) -> StreamWindows:
        weights = run.agent.pretrain.get("field_weights")
        return StreamWindows(rollouts, tokenizer, settings.length, episodes=episodes, field_weights=weights, dither=dither)

    train_set = windows(order[held_out_count:], run.seed if settings.dither else None)
    held_out = windows(order[:held_out_count])

    torch.manual_seed(run.seed)
    model = DHMMGPT2.from_tokenizer(tokenizer, **run.agent.model).to(device)
    logger = make_logger(run.folder, "pretrain")
    try:
        trained = train_language_model(
            model, train_set, held_out, settings, folder=run.folder, logger=logger, seed=run.seed, progress=progress
        )
    finally:
        logger.close()
    baseline = frequency_bits(windows(order[held_out_count:]), held_out, model.slot_ids)
    if progress:
        print(report(model, trained, baseline))
    info = {
        "env_id": run.env.id,
        "env_steps": rollouts.env_steps,
        "imitates": bool(rollouts.imitate.any()),
        "held_out_loss": trained.loss,
        "bits": trained.bits.tolist(),
        "frequency_bits": baseline.tolist(),
        "gradient_steps": trained.steps,
    }
    save_checkpoint(run.language_model, model, tokenizer, info)
    return run.language_model


def pretrains(agent: AgentRecipe) -> bool:
    """Whether the agent's recipe asks for pretraining before PPO."""
    return bool(agent.pretrain) and agent.pretrain.get("episodes", DEFAULT_EPISODES) > 0


def find_pretrained(root: Path, env: EnvRecipe, agent: AgentRecipe) -> Path | None:
    """The newest checkpoint of ``python -m dhmm_rl.pretrain`` that fits the recipes of an environment and an agent."""
    for path in pretraining_runs(root, env):
        checkpoint = load_checkpoint(path)
        tokenizer = checkpoint.tokenizer
        if tokenizer is None or tokenizer.bins != env.tokens.get("bins", 10):
            continue
        if any(not _holds(tokenizer.overrides.get(name, {}), wanted) for name, wanted in env.tokens.get("fields", {}).items()):
            continue
        if DHMMGPT2.from_tokenizer(tokenizer, **agent.model).config == checkpoint.model.config:
            return path
    return None


def keep_fitting(run: Run, tokenizer: Tokenizer, rollouts: Rollouts, progress: bool) -> None:
    """Keep in the run, and print, how well the rollouts can be told from their tokens; draw it where they are images."""
    lines = tokenizer.report or []
    with atomic_write(run.folder / "tokens.json") as temporary:
        temporary.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n")
    if progress:
        print(f"observations as tokens, fitted on the rollouts:\n{table(lines)}\n")
    if image_parts(tokenizer):
        some = np.linspace(0, len(rollouts.rewards) - 1, SHOWN).astype(np.int64)
        save_reconstruction(tokenizer, take(rollouts.observations, some), run.folder / "tokens.png")


def _holds(settings: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(settings.get(key) == value for key, value in wanted.items())


def training_settings(agent: AgentRecipe, **changes: Any) -> TrainingSettings:
    """
    The agent recipe's settings with changes of the user's.

    :raises InputError: for an unknown name
    """
    known = {f.name for f in fields(TrainingSettings)}
    table = {key: value for key, value in agent.pretrain.items() if key not in ("episodes", "field_weights")}
    for name in table:
        if name not in known:
            names = ", ".join(["episodes", "field_weights", *sorted(known)])
            raise InputError(f"the recipe {agent.name} has a key pretrain.{name}; known are {names}")
    return replace(TrainingSettings(**table), **changes)


def get_rollouts(run: Run, data: str, episodes: int | None, progress: bool) -> Rollouts:
    """
    Rollouts from any source; what is collected is kept in the run, and read from there when the run is resumed.

    :raises InputError: for a source that cannot be used
    """
    kept = run.folder / "rollouts"
    if data != "random" and not data.startswith("teacher:"):
        return Rollouts.load(data)
    if kept.exists():
        return Rollouts.load(kept)
    teacher = None if data == "random" else load_teacher(data.removeprefix("teacher:"))
    venv = make_envs(run.env, run.agent.n_envs, run.seed)
    if teacher is not None and teacher.observation_space != venv.observation_space:
        raise InputError(f"the teacher sees {teacher.observation_space}, but {run.env.id} shows {venv.observation_space}")
    rollouts = collect(
        venv,
        teacher,
        episodes=run.agent.pretrain.get("episodes", DEFAULT_EPISODES) if episodes is None else episodes,
        imitate=teacher is not None,
        env_id=run.env.id,
        seed=run.seed,
        deterministic=True,
        progress=progress,
    )
    venv.close()
    rollouts.save(kept)
    return rollouts


def load_teacher(path: str) -> BaseAlgorithm:
    """
    An SB3 model from its zip, whichever algorithm's it is.

    :raises InputError: when there is none at ``path``
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"there is no teacher {path}; an SB3 model's save writes such a zip")
    for algorithm in TEACHERS:
        try:
            return algorithm.load(file, device="cpu")
        except Exception:  # SB3 raises whatever another algorithm's parameters run into
            continue
    raise InputError(f"{path} is not a model of {', '.join(a.__name__ for a in TEACHERS)} of SB3 and sb3-contrib")


def report(model: DHMMGPT2, trained: Trained, baseline: np.ndarray[Any, Any]) -> str:
    """A table of held-out bits per field, summed over large arrays of fields, beside what the frequencies alone give."""
    lines = [
        f"held-out bits per field after {trained.best_step} gradient steps",
        f"{'field':<28}{'frequencies':>12}{'model':>10}",
    ]
    trained_slots = ~np.isnan(trained.bits)
    for name, slots in by_array([slot.name for slot in model.slots], np.flatnonzero(trained_slots)):
        lines.append(f"{name:<28}{abs(baseline[slots].sum()):>12.3f}{abs(trained.bits[slots].sum()):>10.3f}")
    lines.append(f"{'together':<28}{baseline[trained_slots].sum():>12.3f}{trained.bits[trained_slots].sum():>10.3f}")
    return "\n".join(lines)
