"""Training a language model: learning, stopping, resuming, and the baseline."""

import itertools
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl.data import MixedDataset, Rollouts, StreamDataset, collect
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.pretraining import trainer as language_model
from dhmm_rl.pretraining.trainer import (
    TrainResult,
    evaluate_language_model,
    frequency_bits,
    learning_rate,
    train_language_model,
)
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.environments import load_vecnormalize
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.callbacks import Clock
from dhmm_rl.runs.evaluation import EvalSettings, EvaluationCallback
from dhmm_rl.runs.logs import make_logger
from dhmm_rl.tokens import Tokenizer

SETTINGS = TrainingSettings(steps=60, batch_size=16, length=8, warmup=5, eval_every=20, learning_rate=5e-3)


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return collect(make_vec_env("CartPole-v1", 2), episodes=40, imitate=False, seed=0)


def sets(rollouts: Rollouts, settings: TrainingSettings = SETTINGS) -> tuple[Tokenizer, StreamDataset, StreamDataset]:
    tokenizer = Tokenizer(rollouts.observation_space, rollouts.action_space, bins=10).fit(rollouts.observations)
    train = StreamDataset(rollouts, tokenizer, settings.length, episodes=np.arange(30), dither=0)
    return tokenizer, train, StreamDataset(rollouts, tokenizer, settings.length, episodes=np.arange(30, 40))


def train(rollouts: Rollouts, folder: Path, settings: TrainingSettings = SETTINGS) -> tuple[DHMMGPT2, TrainResult]:
    tokenizer, train_set, held_out = sets(rollouts, settings)
    torch.manual_seed(0)
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=16, heads=2, num_states=4, window=8)
    with closing(make_logger(folder, "pretrain")) as logger:
        trained = train_language_model(model, train_set, held_out, settings, folder=folder, logger=logger)
    return model, trained


def test_it_beats_the_frequencies_and_keeps_the_best_weights(rollouts: Rollouts, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=300, batch_size=32, length=8, warmup=10, eval_every=50, learning_rate=1e-2)
    model, trained = train(rollouts, tmp_path, settings)
    _, train_set, held_out = sets(rollouts)
    baseline = frequency_bits(train_set, held_out, model.slot_ids)
    assert math.isnan(trained.bits[0])  # random actions are not learned
    assert trained.bits[1:].sum() < 0.5 * baseline[1:].sum()
    loss, bits = evaluate_language_model(model, held_out, 32)
    assert loss == pytest.approx(trained.loss, rel=1e-5)
    assert loss == pytest.approx(bits[1:].mean() * math.log(2), rel=1e-3)
    assert (tmp_path / "progress_pretrain.csv").is_file()


class Interrupted(Exception):
    pass


def test_an_interrupted_training_ends_as_though_it_had_not_been(
    rollouts: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, through = train(rollouts, tmp_path / "whole")
    seen = 0

    def interrupt(step: int, settings: TrainingSettings) -> float:
        nonlocal seen
        seen += 1
        if seen > 50:
            raise Interrupted
        return learning_rate(step, settings)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "learning_rate", interrupt)
        with pytest.raises(Interrupted):
            train(rollouts, tmp_path / "parts")
    resumed, after = train(rollouts, tmp_path / "parts")
    assert (after.steps, after.best_step, after.loss) == (through.steps, through.best_step, through.loss)
    for mine, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_batches_of_a_mixture_go_on_where_they_stopped(rollouts: Rollouts) -> None:
    tokenizer, _, _ = sets(rollouts)
    halves = [StreamDataset(rollouts, tokenizer, 8, episodes=np.arange(30)[half::2], dither=0) for half in range(2)]
    mixed = MixedDataset(halves, [0.3, 2.5])
    whole = list(itertools.islice(language_model._batches(mixed, 16, seed=1, skip=0), 80))  # more than an epoch
    for skip in (1, 30, 79):
        for mine, other in zip(language_model._batches(mixed, 16, seed=1, skip=skip), whole[skip:], strict=False):
            assert all(torch.equal(*tensors) for tensors in zip(mine, other, strict=True))


def test_it_stops_when_the_held_out_loss_does(rollouts: Rollouts, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=10_000, batch_size=16, length=8, warmup=5, eval_every=5, patience=2, learning_rate=0.3)
    _, trained = train(rollouts, tmp_path, settings)
    assert trained.steps < 10_000
    assert trained.steps == trained.best_step + 10


def test_a_damaged_state_is_named(rollouts: Rollouts, tmp_path: Path) -> None:
    train(rollouts, tmp_path)
    state = tmp_path / "training.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut short"):
        train(rollouts, tmp_path)


def test_frequencies_of_known_data_give_their_entropy() -> None:
    env = make_vec_env("CartPole-v1", 1)
    data = collect(env, lambda observations: np.ones(len(observations), dtype=int), episodes=200, imitate=True)
    tokenizer = Tokenizer(data.observation_space, data.action_space, bins=2)
    windows = StreamDataset(data, tokenizer, 4)
    bits = frequency_bits(windows, windows, DHMMGPT2.from_tokenizer(tokenizer).slot_ids)
    done = len(data) / (data.steps + len(data))
    assert bits[0] == pytest.approx(-done * math.log2(done) - (1 - done) * math.log2(1 - done), abs=0.01)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    settings = TrainingSettings(steps=1000, warmup=100, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(1000)]
    assert np.argmax(rates) in (99, 100)
    assert rates[0] == 0.01
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert (np.diff(rates[100:]) < 0).all()


@pytest.mark.parametrize("change", [{"steps": 0}, {"held_out": 1.0}, {"learning_rate": -1.0}])
def test_settings_out_of_range_are_errors(change: dict[str, float]) -> None:
    with pytest.raises(InputError):
        TrainingSettings(**change).check()  # type: ignore[arg-type]


def test_diverging_is_said(rollouts: Rollouts, tmp_path: Path) -> None:
    tokenizer, train_set, held_out = sets(rollouts)
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=16, heads=2, num_states=4, window=8)
    with torch.no_grad():
        model.head.fill_(torch.nan)
    with closing(make_logger(tmp_path, "pretrain")) as logger, pytest.raises(InputError, match="training diverged"):
        train_language_model(model, train_set, held_out, SETTINGS, folder=tmp_path, logger=logger)


def test_files_of_a_run_that_are_cut_short_are_named(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 1))
    recipe, _ = load_recipes("CartPole-v1", "mlp")
    for name in ("clock.json", "evaluations.npz", "vecnormalize.pkl"):
        (tmp_path / name).write_bytes(b"{")
    with pytest.raises(InputError, match=r"clock.json cannot be read"):
        Clock(tmp_path)
    with pytest.raises(InputError, match=r"evaluations.npz cannot be read"):
        EvaluationCallback(tmp_path, recipe, lambda count: env, Clock(), EvalSettings(1, 1), tmp_path)
    with pytest.raises(InputError, match=r"vecnormalize.pkl cannot be read"):
        load_vecnormalize(env, tmp_path / "vecnormalize.pkl", training=True)
    with pytest.raises(InputError, match=r"there is no .*gone.pkl"):
        load_vecnormalize(env, tmp_path / "gone.pkl", training=True)
