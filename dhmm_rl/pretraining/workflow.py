"""From rollouts to a pretrained language model of an environment's streams."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dhmm_rl.data import MixedDataset, Rollouts, StreamDataset
from dhmm_rl.data.rollouts import Episode
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json, write_json
from dhmm_rl.model import DHMMGPT2, load_checkpoint, save_checkpoint
from dhmm_rl.pretraining.sources import RANDOM, Part, Source, gather
from dhmm_rl.pretraining.trainer import (
    SequenceDataset,
    Trained,
    frequency_bits,
    seconds_per_step,
    steps_done,
    train_language_model,
)
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.recipes.environments import make_envs, make_tokenizer, plain_tokenizer
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.evaluation import check_positions
from dhmm_rl.runs.logs import make_logger
from dhmm_rl.runs.reconstructions import SHOWN, image_parts, save_reconstruction
from dhmm_rl.runs.run import Run, pretraining_runs
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.fitting import RANDOM_STEPS, ROWS, format_report, group_by_array

DEFAULT_EPISODES = 200
OWN_KEYS = ("data", "episodes", "field_weights")
"""Keys of an agent recipe's ``pretrain`` beside the fields of TrainingSettings."""
RANDOM_SHARE = 0.2
"""Of an environment's budget, so much at the most goes into random rollouts when nobody says how many episodes."""


def pretrain(
    run: Run,
    data: Sequence[str] = (),
    *,
    episodes: int | None = None,
    top: float | None = None,
    settings: TrainingSettings | None = None,
    budget: int | None = None,
    allow: Callable[[Tokenizer, float], float] | None = None,
    device: str = "cpu",
    progress: bool = False,
    trust: bool = False,
) -> Path:
    """
    Collect or read rollouts, train a language model on them, and keep it in the run. Resumes where it was interrupted.

    :param run: whose folder takes the rollouts, the logs and the checkpoint
    :param data: sources of rollouts, as :meth:`Source.parse` reads them; when there are none the agent recipe's, or random ones
    :param episodes: how many to collect; when ``None`` the agent recipe's, random ones for a fifth of the budget at the most
    :param top: imitate only this share of the episodes, those of the highest returns
    :param settings: of the training; the agent recipe's when ``None``
    :param budget: environment steps of the run; the environment recipe's when ``None``
    :param allow: from the tokenizer and the seconds that all gradient steps would take to the seconds that they may take; there
        are fewer steps if that is less
    :param trust: read teachers' zips, which can run code
    :return: the checkpoint
    :raises InputError: for data that cannot be used
    """
    if not run.agent.reads_tokens:
        raise InputError(f"the agent {run.agent.name} has no language model to pretrain; dhmm-gpt2 has")
    training = settings or training_settings(run.agent)
    training.check()
    began = time.perf_counter()
    venv = make_envs(run.env, 1, run.seed)
    check_positions(run.agent, run.env)
    plain_tokenizer(run.env, venv)  # says what cannot be tokenized before anything is collected
    parts = gather(
        [Source.parse(text) for text in data or run.agent.pretrain.get("data", [RANDOM])],
        run.env,
        run.folder,
        n_envs=run.agent.n_envs,
        episodes=run.agent.pretrain.get("episodes", DEFAULT_EPISODES) if episodes is None else episodes,
        max_steps=random_steps(run.env, budget) if episodes is None else None,
        top=top,
        seed=run.seed,
        progress=progress,
        trust=trust,
    )
    splits = [split(rollouts, training.held_out, run.seed) for rollouts, _ in parts]
    if not any(len(rest) for _, rest in splits):
        raise InputError("pretraining needs at least 2 episodes of a source, one of them held out; there is 1")
    some = sample(parts)
    tokenizer = make_tokenizer(run.env, venv, some)
    venv.close()
    keep_fitting(run, tokenizer, some, progress)

    def windows(held_out: bool, dither: int | None = None) -> StreamDataset | MixedDataset:
        chosen = [(part, numbers[held_out]) for part, numbers in zip(parts, splits, strict=True) if len(numbers[held_out])]
        sets = [
            StreamDataset(
                part.rollouts,
                tokenizer,
                training.length,
                episodes=episodes,
                field_weights=run.agent.pretrain.get("field_weights"),
                weight=part.weight if held_out else 1.0,  # of a loss; training shows them more often instead
                dither=dither,
            )
            for part, episodes in chosen
        ]
        return sets[0] if len(sets) == 1 else MixedDataset(sets, [part.weight for part, _ in chosen])

    train_set = windows(held_out=False, dither=run.seed if training.dither else None)
    held_out = windows(held_out=True)

    torch.manual_seed(run.seed)
    model = DHMMGPT2.from_tokenizer(tokenizer, **run.agent.model).to(device)
    if allow is not None:
        training = fit_in_time(run, model, train_set, training, partial(allow, tokenizer))
    logger = make_logger(run.folder, "pretrain", steps_done(run.folder))
    prepared = time.perf_counter() - began
    try:
        trained = train_language_model(
            model,
            train_set,
            held_out,
            training,
            folder=run.folder,
            logger=logger,
            seed=run.seed,
            progress=progress,
            evaluate_first=True,
        )
    finally:
        logger.close()
    if trained.best_step == 0:
        print("note: pretraining did not lower the held-out loss, so the model is left untrained; more episodes would help")
    baseline = frequency_bits(windows(held_out=False), held_out, model.slot_ids)
    if progress:
        print(report(model, trained, baseline))
    info = {
        "env_id": run.env.id,
        "env_steps": sum(rollouts.env_steps for rollouts, _ in parts),
        "imitates": any(rollouts.imitate.any() for rollouts, _ in parts),
        "held_out_loss": trained.loss,
        "bits": trained.bits.tolist(),
        "frequency_bits": baseline.tolist(),
        "gradient_steps": trained.steps,
        "seconds": prepared + trained.seconds,
    }
    save_checkpoint(run.language_model, model, tokenizer, info)
    return run.language_model


def pretrains(agent: AgentRecipe) -> bool:
    """Whether the agent's recipe asks for pretraining before PPO."""
    return bool(agent.pretrain) and agent.pretrain.get("episodes", DEFAULT_EPISODES) > 0


def random_steps(env: EnvRecipe, budget: int | None = None) -> int:
    """Environment steps that random rollouts take at the most when nobody says how many episodes."""
    return max(int(RANDOM_SHARE * (budget or env.budget)), RANDOM_STEPS)


def fit_in_time(
    run: Run, model: DHMMGPT2, train_set: SequenceDataset, settings: TrainingSettings, allow: Callable[[float], float]
) -> TrainingSettings:
    """
    As many gradient steps as the time allows, on a schedule for that number.

    The number is decided once and kept in the run, so a resumed run takes the same one.

    :param allow: from the seconds that all steps would take to the seconds that they may take
    """
    kept = run.folder / "pretraining.json"
    if not kept.exists():
        step = seconds_per_step(model, train_set, settings)
        needed = step * settings.steps
        allowed = allow(needed)
        steps = min(settings.steps, max(int(allowed / step), 1))
        if steps < settings.steps:
            print(
                f"note: {settings.steps} gradient steps of pretraining would take {needed:.0f} s; {steps} of them fit in the"
                f" {allowed:.0f} s allowed. python -m dhmm_rl.pretrain takes them all, ppo --pretrained PATH starts from that"
            )
        write_json(kept, {"steps": steps})
    steps = read_json(kept)["steps"]
    if steps == settings.steps:
        return settings
    return replace(settings, steps=steps, warmup=min(settings.warmup, max(steps // 4, 1)))


def asked_for(
    env: EnvRecipe, agent: AgentRecipe, args: dict[str, Any] | None = None, budget: int | None = None
) -> dict[str, Any]:
    """
    What a pretrained language model depends on, by name, as it reads back from JSON.

    :param args: those of a run of ``python -m dhmm_rl.pretrain``
    :param budget: environment steps of the run, if not the environment recipe's
    """
    args = args or {}
    settings = training_settings(agent, **args.get("changes", {}))
    episodes = args.get("episodes")
    asked = {
        "environment": [env.id, env.kwargs, env.wrappers],
        "tokens": env.tokens,
        "model": agent.model,
        "data": args.get("data") or agent.pretrain.get("data", [RANDOM]),
        "top": args.get("top"),
        "episodes": agent.pretrain.get("episodes", DEFAULT_EPISODES) if episodes is None else episodes,
        "random steps": random_steps(env, budget) if episodes is None else None,
        "field weights": agent.pretrain.get("field_weights"),
        "training": asdict(settings),
        "time limit": args.get("max_seconds"),
    }
    read: dict[str, Any] = json.loads(json.dumps(asked))
    return read


def find_pretrained(root: Path, env: EnvRecipe, agent: AgentRecipe, seed: int, budget: int | None = None) -> Path | None:
    """
    The newest language model that was pretrained just as these recipes ask for.

    :param seed: of the run; a model that another run of PPO pretrained has the same seed, one of ``python -m dhmm_rl.pretrain``
        may have any
    :param budget: environment steps of the run, if not the environment recipe's
    """
    others = []
    for run in pretraining_runs(root, env):
        of_ppo = run.command == "ppo"
        if of_ppo and (run.args.get("pretrained") != "new" or run.seed != seed):
            continue
        wanted = asked_for(env, agent, budget=budget if of_ppo else None)
        try:
            made = asked_for(run.env, run.agent, *((None, run.args.get("steps")) if of_ppo else (run.args,)))
            checkpoint = load_checkpoint(run.language_model)
        except (InputError, TypeError):  # of another version, or damaged
            continue
        different = [name for name, value in wanted.items() if made[name] != value]
        tokenizer = checkpoint.tokenizer
        if not different and tokenizer is not None:
            if DHMMGPT2.from_tokenizer(tokenizer, **agent.model).config == checkpoint.model.config:
                return run.language_model
            different = ["version"]
        others.append(f"{run.language_model} (other {', '.join(different)})")
    if others:
        print(f"note: not started from {others[0]}, which was pretrained differently; --pretrained PATH would start from it")
    return None


def keep_fitting(run: Run, tokenizer: Tokenizer, rollouts: Rollouts, progress: bool) -> None:
    """Keep in the run, and print, how well the rollouts can be told from their tokens; draw it where they are images."""
    lines = tokenizer.report or []
    with atomic_write(run.folder / "tokens.json") as temporary:
        temporary.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n", encoding="utf-8")
    if progress:
        print(f"observations as tokens, fitted on the rollouts:\n{format_report(lines)}\n")
    if image_parts(tokenizer):
        some = np.linspace(0, len(rollouts.rewards) - 1, SHOWN).astype(np.int64)
        save_reconstruction(tokenizer, rollouts.observations_at(some), run.folder / "tokens.png")


def training_settings(agent: AgentRecipe, **changes: Any) -> TrainingSettings:
    """
    The agent recipe's settings with changes of the user's.

    :raises InputError: for an unknown name
    """
    known = {f.name for f in fields(TrainingSettings)}
    table = {key: value for key, value in agent.pretrain.items() if key not in OWN_KEYS}
    for name in table:
        if name not in known:
            names = ", ".join([*OWN_KEYS, *sorted(known)])
            raise InputError(f"the recipe {agent.name} has a key pretrain.{name}; known are {names}")
    return replace(TrainingSettings(**table), **changes)


def split(rollouts: Rollouts, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Numbers of the episodes to train on and of those held out: a share of the imitated ones, and the same share of the others.

    A single episode of its kind is trained on.
    """
    order = np.random.default_rng(seed).permutation(len(rollouts))
    chosen: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for kind in (True, False):
        some = order[rollouts.imitate[order] == kind]
        count = min(max(1, round(held_out * len(some))), len(some) - 1) if len(some) else 0
        chosen[0].append(some[count:])
        chosen[1].append(some[:count])
    train, rest = map(np.concatenate, chosen)
    return (train, rest) if len(rest) or len(order) < 2 else (order[1:], order[:1])


def sample(parts: Sequence[Part], rows: int = ROWS) -> Rollouts:
    """Episodes of all sources, evenly spaced, of about so many rows: what a tokenizer is fitted on."""
    if len(parts) == 1:
        return parts[0].rollouts
    total = sum(len(part.rollouts.rewards) for part in parts)
    episodes: list[Episode] = []
    for rollouts, _ in parts:
        count = max(1, len(rollouts) * min(rows, total) // total)
        episodes += [rollouts[int(number)] for number in np.unique(np.linspace(0, len(rollouts) - 1, count).astype(int))]
    first = parts[0].rollouts
    return Rollouts.from_episodes(episodes, first.observation_space, first.action_space, first.env_id, 0)


def report(model: DHMMGPT2, trained: Trained, baseline: np.ndarray[Any, Any]) -> str:
    """A table of held-out bits per field, summed over large arrays of fields, beside what the frequencies alone give."""
    lines = [
        f"held-out bits per field after {trained.best_step} gradient steps",
        f"{'field':<28}{'frequencies':>12}{'model':>10}",
    ]
    trained_slots = ~np.isnan(trained.bits)
    for name, slots in group_by_array([slot.name for slot in model.slots], np.flatnonzero(trained_slots)):
        lines.append(f"{name:<28}{abs(baseline[slots].sum()):>12.3f}{abs(trained.bits[slots].sum()):>10.3f}")
    lines.append(f"{'together':<28}{baseline[trained_slots].sum():>12.3f}{trained.bits[trained_slots].sum():>10.3f}")
    return "\n".join(lines)
