"""Fixtures and helpers that tests share."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import settings

from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.fields import flatten, unflatten
from dhmm_rl.tokens.images import Codebook

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")


LONGEST = ("test_package.py", "test_readme.py")
"""Files with the longest single tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files with the longest single tests first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _steady() -> None:
    """Use one thread, and the same random numbers in every run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def cartpole() -> Tokenizer:
    """CartPole's tokenizer at 10 bins."""
    env = gym.make("CartPole-v1")
    return Tokenizer(env.observation_space, env.action_space)


def within_one_bin(tokenizer: Tokenizer, values: np.ndarray[Any, Any]) -> None:
    """Check that decoding returns discrete fields exactly, and binned ones within one bin of the clipped value."""
    codec = tokenizer.observation_codec
    ids = codec.encode(values)
    assert (ids >= codec.starts[:-1]).all()
    assert (ids < codec.starts[1:]).all()
    back = flatten(tokenizer.observation_space, unflatten(tokenizer.observation_space, codec.decode(ids)))
    for part in codec.groups:
        met, got = (array[..., part.columns].astype(np.float64) for array in (values, back))
        if isinstance(part.quantizer, Codebook):
            continue
        if isinstance(part.quantizer, Bins):
            met = np.clip(met, part.quantizer.low, part.quantizer.high)
            assert (np.abs(part.quantizer.compand(got) - part.quantizer.compand(met)) <= 1 + 1e-3).all()
        else:
            np.testing.assert_array_equal(got, met)
