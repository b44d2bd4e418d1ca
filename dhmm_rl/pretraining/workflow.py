"""Pretraining in four steps: load the rollouts, fit the tokenizer, make the datasets, train and save the language model."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dhmm_rl.data import MixedDataset, Rollouts, StreamDataset
from dhmm_rl.data.episodes import Episode
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json, write_json
from dhmm_rl.model import DHMMGPT2, save_checkpoint
from dhmm_rl.pretraining.gradient_step import Compile
from dhmm_rl.pretraining.settings import PretrainingSettings
from dhmm_rl.pretraining.sources import CollectSettings, Source, WeightedRollouts, load_sources
from dhmm_rl.pretraining.trainer import (
    SequenceDataset,
    TrainResult,
    frequency_bits,
    seconds_per_step,
    steps_done,
    train_language_model,
)
from dhmm_rl.recipes import Table
from dhmm_rl.recipes.environments import EnvFactory, unfitted_tokenizer
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.logs import make_logger
from dhmm_rl.runs.reconstructions import MAX_SHOWN, image_parts, save_reconstruction
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.time_limits import check_positions
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.fitting import ROWS
from dhmm_rl.tokens.reports import format_report, group_by_array

AllowedSeconds = Callable[[Tokenizer, float], float]
"""A function of the tokenizer and the seconds that all gradient steps would take. It returns the seconds they may take."""


class PretrainingData(NamedTuple):
    """
    The rollouts of all sources, split by episodes.

    :param mixture: rollouts and weight of each source
    :param splits: numbers of the training episodes and of the held-out episodes of each source
    """

    mixture: list[WeightedRollouts]
    splits: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    def info(self, run: Run) -> dict[str, Any]:
        """Return what the checkpoint records about the data."""
        return {
            "env_id": run.env.id,
            "env_steps": sum(rollouts.env_steps for rollouts, _ in self.mixture),
            "imitates": any(rollouts.imitate.any() for rollouts, _ in self.mixture),
        }


class Datasets(NamedTuple):
    """
    Windows of the token streams.

    :param train: windows of the training episodes, dithered if the settings ask for it
    :param train_exact: windows of the training episodes, without dither
    :param held_out: windows of the held-out episodes, without dither
    """

    train: SequenceDataset
    train_exact: SequenceDataset
    held_out: SequenceDataset


def pretrain(
    run: Run,
    factory: EnvFactory,
    *,
    allowed_seconds: AllowedSeconds | None = None,
    device: str = "cpu",
    progress: bool = False,
    trust: bool = False,
    compile: Compile = "auto",
) -> Path:
    """
    Pretrain a language model and save it in the folder of the run. Resumes where it was interrupted.

    :param run: run that gets the rollouts, the logs and the checkpoint; its recipes and arguments are the settings
    :param factory: factory of the run's environments
    :param allowed_seconds: time limit, which reduces the number of gradient steps; no limit when ``None``
    :param device: device to train on
    :param progress: print reports and show progress bars
    :param trust: also read zips of teachers, which can run code
    :param compile: compile the gradient steps, see :func:`~dhmm_rl.pretraining.gradient_step.compilation_pays`
    :return: path of the checkpoint
    :raises InputError: for settings that are out of range, and for data that cannot be used
    """
    if not run.agent.reads_tokens:
        raise InputError(f"the agent {run.agent.name} has no language model to pretrain; dhmm-gpt2 has")
    began = time.perf_counter()
    settings = PretrainingSettings.from_run(run)
    settings.training.check()
    check_positions(run.agent, run.env)

    unfitted = unfitted_tokenizer(run.env, factory)  # reports what cannot be tokenized before anything is collected
    data = load_data(run, factory, settings, progress, trust)
    tokenizer = fit_tokenizer(run, data, unfitted, progress)
    datasets = make_datasets(run, data, tokenizer, settings)

    torch.manual_seed(run.seed)
    model = DHMMGPT2.from_tokenizer(tokenizer, **run.agent.model).to(device)
    training = settings.training
    if allowed_seconds is not None:
        training = fit_in_time(run, model, datasets.train, training, partial(allowed_seconds, tokenizer))
    info = data.info(run) | {"seconds": time.perf_counter() - began}
    train_and_save(run, model, tokenizer, datasets, training, info, progress, compile)
    return run.language_model


def load_data(run: Run, factory: EnvFactory, settings: PretrainingSettings, progress: bool, trust: bool) -> PretrainingData:
    """
    Step 1: collect or load the rollouts, and split each source's episodes into training and held-out ones.

    :raises InputError: for a source that cannot be used, and when there are too few episodes to hold one out
    """
    collecting = CollectSettings(
        n_envs=run.agent.n_envs,
        episodes=settings.episodes,
        max_steps=settings.max_random_steps,
        progress=progress,
        trust=trust,
    )
    sources = [Source.parse(text) for text in settings.data]
    mixture = load_sources(sources, factory, run.folder, collecting, settings.top_fraction)
    splits = [train_val_split(rollouts, settings.training.held_out, run.seed) for rollouts, _ in mixture]
    if not any(len(held_out) for _, held_out in splits):
        raise InputError("pretraining needs at least 2 episodes of a source, one of them held out; there is 1")
    return PretrainingData(mixture, splits)


def fit_tokenizer(run: Run, data: PretrainingData, unfitted: Tokenizer, progress: bool) -> Tokenizer:
    """Step 2: fit the tokenizer to rollouts of all sources, and save a report on how well it tells observations apart."""
    rollouts = sample_episodes(data.mixture)
    tokenizer = unfitted.fit(rollouts)
    save_tokenizer_report(run, tokenizer, rollouts, progress)
    return tokenizer


def make_datasets(run: Run, data: PretrainingData, tokenizer: Tokenizer, settings: PretrainingSettings) -> Datasets:
    """Step 3: cut the episodes of each split into windows of tokens."""
    length, field_weights = settings.training.length, settings.field_weights
    dataset = partial(StreamDataset, tokenizer=tokenizer, length=length, field_weights=field_weights)

    def windows(held_out: bool, dither: int | None = None) -> StreamDataset | MixedDataset:
        parts, weights = [], []
        for (rollouts, weight), (train_episodes, held_out_episodes) in zip(data.mixture, data.splits, strict=True):
            episodes = held_out_episodes if held_out else train_episodes
            if len(episodes) == 0:
                continue
            # Training shows the windows of a source in proportion to its weight; evaluation weights their loss instead.
            loss_weight = weight if held_out else 1.0
            parts.append(dataset(rollouts, episodes=episodes, weight=loss_weight, dither=dither))
            weights.append(weight)
        return parts[0] if len(parts) == 1 else MixedDataset(parts, weights)

    dither_seed = run.seed if settings.training.dither else None
    return Datasets(windows(held_out=False, dither=dither_seed), windows(held_out=False), windows(held_out=True))


def train_and_save(
    run: Run,
    model: DHMMGPT2,
    tokenizer: Tokenizer,
    datasets: Datasets,
    training: TrainingSettings,
    info: Table,
    progress: bool,
    compile: Compile,
) -> None:
    """Step 4: train the model, report its held-out loss, and save it with the tokenizer and with ``info``."""
    with closing(make_logger(run.folder, "pretrain", steps_done(run.folder))) as logger:
        result = train_language_model(
            model,
            datasets.train,
            datasets.held_out,
            training,
            folder=run.folder,
            logger=logger,
            seed=run.seed,
            progress=progress,
            evaluate_first=True,
            compile=compile,
        )
    baseline = frequency_bits(datasets.train_exact, datasets.held_out, model.slot_ids)
    print_report(model, result, baseline, verbose=progress)
    seconds = info["seconds"] + result.seconds
    save_checkpoint(run.language_model, model, tokenizer, info | result_info(result, baseline) | {"seconds": seconds})


def print_report(model: DHMMGPT2, result: TrainResult, baseline: NDArray[np.float64], verbose: bool) -> None:
    """Print what the training reached if ``verbose``, and in any case that it reached nothing."""
    if result.best_step == 0:
        print("note: pretraining did not lower the held-out loss, so the model is left untrained; more episodes would help")
    if verbose:
        print(format_held_out_report(model, result, baseline))


def result_info(result: TrainResult, baseline: NDArray[np.float64]) -> dict[str, Any]:
    """What a checkpoint's info says about the training: its held-out loss, in nats, and its cross-entropies, in bits."""
    return {
        "held_out_loss": result.loss,
        "bits": result.bits.tolist(),
        "frequency_bits": baseline.tolist(),
        "gradient_steps": result.steps,
    }


def fit_in_time(
    run: Run,
    model: DHMMGPT2,
    train_set: SequenceDataset,
    settings: TrainingSettings,
    allowed_seconds: Callable[[float], float],
) -> TrainingSettings:
    """
    Reduce the number of gradient steps so that they fit in the allowed time, and adapt the schedule to that number.

    The number is decided once and saved in the run, so that a resumed run uses the same one.

    :param run: run that saves the number of steps
    :param model: model to time; it is not changed
    :param train_set: windows to time the model on
    :param settings: settings with all gradient steps
    :param allowed_seconds: function of the seconds that all steps would take; returns the seconds they may take
    :return: settings with the reduced number of steps
    """
    path = run.folder / "pretraining.json"
    if not path.exists():
        step_seconds = seconds_per_step(model, train_set, settings)
        needed = step_seconds * settings.steps
        allowed = allowed_seconds(needed)
        steps = min(settings.steps, max(int(allowed / step_seconds), 1))
        if steps < settings.steps:
            print(
                f"note: {settings.steps} gradient steps of pretraining would take {needed:.0f} s; {steps} of them fit in the"
                f" {allowed:.0f} s allowed. python -m dhmm_rl.pretrain takes them all, ppo --pretrained PATH starts from that"
            )
        write_json(path, {"steps": steps})
    steps = read_json(path)["steps"]
    if steps == settings.steps:
        return settings
    return replace(settings, steps=steps, warmup=min(settings.warmup, max(steps // 4, 1)))


def train_val_split(rollouts: Rollouts, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Split the episodes at random into training and held-out ones.

    The same fraction is held out of the episodes whose actions are imitated and of the others. When there is only one episode
    of a kind, it is trained on.

    :param rollouts: the episodes to split
    :param held_out: fraction of the episodes to hold out
    :param seed: seed of the random order
    :return: numbers of the training episodes and of the held-out episodes
    """
    order = np.random.default_rng(seed).permutation(len(rollouts))
    train_parts, held_out_parts = [], []
    for imitated in (True, False):
        episodes = order[rollouts.imitate[order] == imitated]
        count = min(max(1, round(held_out * len(episodes))), len(episodes) - 1) if len(episodes) else 0
        held_out_parts.append(episodes[:count])
        train_parts.append(episodes[count:])
    train, val = np.concatenate(train_parts), np.concatenate(held_out_parts)
    if len(val) == 0 and len(order) >= 2:  # one episode of each kind
        return order[1:], order[:1]
    return train, val


def sample_episodes(mixture: Sequence[WeightedRollouts], max_rows: int = ROWS) -> Rollouts:
    """
    Return evenly spaced episodes of all sources, the data that a tokenizer is fitted to.

    :param mixture: rollouts of all sources; those of a single source are returned whole
    :param max_rows: approximate number of environment steps of the sample
    """
    if len(mixture) == 1:
        return mixture[0].rollouts
    total = sum(len(rollouts.rewards) for rollouts, _ in mixture)
    episodes: list[Episode] = []
    for rollouts, _ in mixture:
        count = max(1, len(rollouts) * min(max_rows, total) // total)
        numbers = np.unique(np.linspace(0, len(rollouts) - 1, count).astype(int))
        episodes += [rollouts[int(number)] for number in numbers]
    first = mixture[0].rollouts
    return Rollouts.from_episodes(episodes, first.observation_space, first.action_space, first.env_id, 0)


def save_tokenizer_report(run: Run, tokenizer: Tokenizer, rollouts: Rollouts, progress: bool) -> None:
    """Save, and print, how well tokens tell the observations of the rollouts apart. Also draw reconstructions of images."""
    lines = tokenizer.report or []
    with atomic_write(run.folder / "tokens.json") as temporary:
        temporary.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n", encoding="utf-8")
    if progress:
        print(f"observations as tokens, fitted on the rollouts:\n{format_report(lines)}\n")
    if image_parts(tokenizer):
        shown = np.linspace(0, len(rollouts.rewards) - 1, MAX_SHOWN).astype(np.int64)
        save_reconstruction(tokenizer, rollouts.observations_at(shown), run.folder / "tokens.png")


def format_held_out_report(model: DHMMGPT2, result: TrainResult, baseline: NDArray[np.float64]) -> str:
    """
    Format a table of held-out bits per field, with those of a model that knows only how frequent each id is.

    The bits of a large array of fields are summed in one line.

    :param model: the trained model
    :param result: result of its training
    :param baseline: held-out bits per slot of the frequencies, see :func:`~dhmm_rl.pretraining.trainer.frequency_bits`
    """
    lines = [
        f"held-out bits per field after {result.best_step} gradient steps",
        f"{'field':<28}{'frequencies':>12}{'model':>10}",
    ]
    in_loss = ~np.isnan(result.bits)
    for name, slots in group_by_array([slot.name for slot in model.slots], np.flatnonzero(in_loss)):
        lines.append(f"{name:<28}{abs(baseline[slots].sum()):>12.3f}{abs(result.bits[slots].sum()):>10.3f}")
    lines.append(f"{'together':<28}{baseline[in_loss].sum():>12.3f}{result.bits[in_loss].sum():>10.3f}")
    return "\n".join(lines)
