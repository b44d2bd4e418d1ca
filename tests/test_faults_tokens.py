"""Faults of tokenizers and of what they read: the kinds that were found, and their siblings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from dhmm_rl.data import Rollouts, collect
from dhmm_rl.envs import as_arrays
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.fields import flatten


class Drawn(gym.Env[Any, Any]):
    """Episodes of five steps whose observations are drawn from a space, or made by a function of the random numbers."""

    def __init__(self, space: spaces.Space[Any], observe: Callable[[np.random.Generator], Any] | None = None) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.observe, self.steps = observe, 0

    def observation(self) -> Any:
        return self.observation_space.sample() if self.observe is None else self.observe(self.np_random)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation(), 1.0, self.steps == 5, False, {}


# What rollouts take

IMAGE: Any = spaces.Box(0, 255, (32, 32, 3), np.uint8)
VECTOR: Any = spaces.Box(-np.inf, np.inf, (6,), np.float32)
COMPOSITE: dict[str, tuple[Any, int]] = {
    "image and vector": (spaces.Dict(image=IMAGE, vector=VECTOR), 3072 + 6 * 4),
    "one type": (spaces.Dict(a=VECTOR, b=VECTOR), 2 * 6 * 4),
    "tuple": (spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(64), VECTOR]), 8 + 64 + 24),
    "small": (spaces.Tuple([spaces.Discrete(3), VECTOR]), 7 * 8),
    "nested": (spaces.Dict(image=IMAGE, rest=spaces.Dict(vector=VECTOR, kind=spaces.Discrete(4))), 3072 + 24 + 8),
    "alternatives": (spaces.OneOf([VECTOR, spaces.Box(0, 9, (20,), np.uint8)]), 8 + 24 + 20),
}


@pytest.mark.parametrize("kind", COMPOSITE)
def test_rollouts_of_composite_observations_take_no_more_than_the_types_of_their_space(kind: str, tmp_path: Path) -> None:
    space, size = COMPOSITE[kind]
    venv = DummyVecEnv([lambda: as_arrays(Drawn(space))] * 2)
    rollouts = collect(venv, episodes=4, imitate=True)
    assert rollouts.observations.nbytes == size * len(rollouts.rewards)
    rollouts.save(tmp_path / "kept")
    kept = Rollouts.load(tmp_path / "kept")
    assert isinstance(kept.observations, np.memmap)
    rows = np.arange(len(rollouts.rewards))
    venv.seed(0)
    first = venv.reset()
    for some in (rollouts, kept, kept.select(range(4)), kept.seen_as(venv.observation_space)):
        again = flatten(venv.observation_space, some.observations_at(rows))
        np.testing.assert_array_equal(again, flatten(venv.observation_space, rollouts.observations_at(rows)))
        np.testing.assert_array_equal(again[0], flatten(venv.observation_space, first)[0])


@pytest.mark.parametrize("kind", COMPOSITE)
def test_rollouts_that_were_kept_as_floats_are_read_and_joined_with_new_ones(kind: str, tmp_path: Path) -> None:
    space, _ = COMPOSITE[kind]
    venv = DummyVecEnv([lambda: as_arrays(Drawn(space))])
    new = collect(venv, episodes=2, imitate=True)
    rows = np.arange(len(new.rewards))
    flat = flatten(venv.observation_space, new.observations_at(rows)).astype(np.float64)
    new.save(tmp_path / "old")
    np.save(tmp_path / "old" / "observations.npy", flat)
    description = json.loads((tmp_path / "old" / "rollouts.json").read_text())
    del description["checksum"], description["checksums"]  # older files have none
    (tmp_path / "old" / "rollouts.json").write_text(json.dumps(description))
    old = Rollouts.load(tmp_path / "old")
    joined = Rollouts.from_episodes([*old, *new], old.observation_space, old.action_space, "", 0)
    assert joined.observations.dtype == new.observations.dtype or not new.observations.dtype.names
    for some, times in ((old, 1), (joined, 2)):
        values = flatten(venv.observation_space, some.observations_at(np.arange(len(some.rewards))))
        np.testing.assert_array_equal(values, np.concatenate([flat] * times))


# Tokens lie where the data lie, whatever the declared bounds

SHAPES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "uniform": lambda rng, n: rng.uniform(-1.7, 1.7, n),
    "skewed": lambda rng, n: rng.exponential(size=n),
    "two modes": lambda rng, n: rng.choice([-1, 1], n) + 0.2 * rng.normal(size=n),
    "a rare event": lambda rng, n: rng.normal(size=n) + 20 * (rng.random(n) < 0.02),
    "mostly one value": lambda rng, n: np.where(rng.random(n) < 0.7, 0.0, rng.normal(size=n)),
}


def told_apart(tokenizer: Tokenizer, values: Any) -> None:
    """Every field uses more than two ids and is decoded to within half its spread."""
    assert tokenizer.report is not None
    ids = tokenizer.encode_observation(values)
    back = tokenizer.decode_observation(ids).astype(np.float64)
    assert (np.array([len(np.unique(column)) for column in ids.T]) > 2).all()
    error = np.sqrt(np.square(back - values).mean(axis=0))
    assert (error <= values.std(axis=0) / 2).all()
    assert all(line.used > 2 and line.error <= line.spread / 2 for line in tokenizer.report)


@given(
    shape=st.sampled_from(sorted(SHAPES)),
    center=st.sampled_from([0.0, 20.0, 1013.0, -273.0, 0.5, 1e5]),
    spread=st.floats(0.01, 100),
    low=st.sampled_from([-np.inf, -3e38, -1e5, -1000.0, 0.0]),
    high=st.sampled_from([np.inf, 3e38, 1e5, 1100.0]),
    bins=st.integers(8, 40),
    array=st.sampled_from([(1,), (3,), (2, 2)]),
    seed=st.integers(0, 1000),
)
def test_values_can_be_told_apart_wherever_they_lie(
    shape: str, center: float, spread: float, low: float, high: float, bins: int, array: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = np.stack([center + spread * SHAPES[shape](rng, 2000) for _ in range(int(np.prod(array)))], axis=-1)
    space = spaces.Box(low, high, array, np.float64)
    tokenizer = Tokenizer(space, spaces.Discrete(2), bins=bins)
    fitted = tokenizer.fit(values.reshape(-1, *array))  # a warning would be an error
    flat = Tokenizer.from_dict(fitted.to_dict()).observation_codec
    assert (flat.decode(flat.encode(values)) == fitted.observation_codec.decode(fitted.observation_codec.encode(values))).all()
    line = spaces.Box(low, high, (values.shape[1],), np.float64)
    told_apart(Tokenizer(line, spaces.Discrete(2), bins=bins).fit(values), values)
    assert fitted.vocab_size == tokenizer.vocab_size
