"""From rollouts to a pretrained language model of an environment's streams."""

import time
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
from dhmm_rl.model import DHMMGPT2, load_checkpoint, save_checkpoint
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.training.environments import make_envs, make_tokenizer
from dhmm_rl.training.language_model import Trained, TrainingSettings, frequency_bits, train_language_model
from dhmm_rl.training.logs import make_logger
from dhmm_rl.training.runs import Run, pretraining_runs

DEFAULT_EPISODES = 200
RANDOM_SHARE = 0.2
"""Of an environment's budget, so much at the most goes into random rollouts when nobody says how many episodes."""
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
    :param episodes: how many to collect; when ``None`` the agent recipe's, random ones for a fifth of the environment's budget
        at the most
    :param settings: of the training; the agent recipe's when ``None``
    :return: the checkpoint
    :raises InputError: for data that cannot be used
    """
    if not run.agent.reads_tokens:
        raise InputError(f"the agent {run.agent.name} has no language model to pretrain; dhmm-gpt2 has")
    settings = settings or training_settings(run.agent)
    settings.check()
    began = time.perf_counter()
    venv = make_envs(run.env, 1, run.seed)
    make_tokenizer(run.env, venv)  # says what cannot be tokenised before anything is collected
    rollouts = get_rollouts(run, data, episodes, progress)
    if len(rollouts) < 2:
        raise InputError("pretraining needs at least 2 episodes, one of them held out; there is 1")

    order = np.random.default_rng(run.seed).permutation(len(rollouts))
    held_out_count = min(max(1, round(settings.held_out * len(rollouts))), len(rollouts) - 1)
    tokenizer = make_tokenizer(run.env, venv, rollouts)
    venv.close()

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
        "seconds": time.perf_counter() - began,
    }
    save_checkpoint(run.language_model, model, tokenizer, info)
    return run.language_model


def pretrains(agent: AgentRecipe) -> bool:
    """Whether the agent's recipe asks for pretraining before PPO."""
    return bool(agent.pretrain) and agent.pretrain.get("episodes", DEFAULT_EPISODES) > 0


def find_pretrained(root: Path, env: EnvRecipe, agent: AgentRecipe) -> Path | None:
    """The newest checkpoint of ``python -m dhmm_rl.pretrain`` that fits the recipes of an environment and an agent."""
    for path in pretraining_runs(root, env):
        try:
            checkpoint = load_checkpoint(path)
        except InputError:  # of another version, or cut short: no reason not to pretrain anew
            continue
        tokenizer = checkpoint.tokenizer
        if tokenizer is None or tokenizer.bins != env.tokens.get("bins", 10):
            continue
        if any(tokenizer.overrides.get(name) != wanted for name, wanted in env.tokens.get("fields", {}).items()):
            continue
        if DHMMGPT2.from_tokenizer(tokenizer, **agent.model).config == checkpoint.model.config:
            return path
    return None


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
    if teacher is not None:
        try:
            make_tokenizer(run.env, venv).check_spaces(teacher.observation_space, teacher.action_space)
        except InputError as error:
            raise InputError(f"the teacher is of another environment than {run.env.id}: {error}") from error
    wanted = run.agent.pretrain.get("episodes", DEFAULT_EPISODES) if episodes is None else episodes
    rollouts = collect(
        venv,
        teacher,
        episodes=wanted,
        imitate=teacher is not None,
        max_steps=int(RANDOM_SHARE * run.env.budget) if teacher is None and episodes is None else None,
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
    """A table of held-out bits per field, beside what the frequencies alone give."""
    lines = [
        f"held-out bits per field after {trained.best_step} gradient steps",
        f"{'field':<20}{'frequencies':>12}{'model':>10}",
    ]
    for slot, known, bits in zip(model.slots, baseline, trained.bits, strict=True):
        if not np.isnan(bits):
            lines.append(f"{slot.name:<20}{known:>12.3f}{bits:>10.3f}")
    trained_slots = ~np.isnan(trained.bits)
    lines.append(f"{'together':<20}{baseline[trained_slots].sum():>12.3f}{trained.bits[trained_slots].sum():>10.3f}")
    return "\n".join(lines)
