"""What tests share."""

import gymnasium as gym
import pytest
import torch
from hypothesis import settings

from dhmm_rl.tokens import Tokenizer

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _steady() -> None:
    """One thread and the same numbers in every run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def cartpole() -> Tokenizer:
    """CartPole's tokenizer at 10 bins."""
    env = gym.make("CartPole-v1")
    return Tokenizer(env.observation_space, env.action_space)
