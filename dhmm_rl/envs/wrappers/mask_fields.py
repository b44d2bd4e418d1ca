"""Environments that hide a part of their state."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class MaskFields(gym.ObservationWrapper[NDArray[Any], Any, NDArray[Any]], gym.utils.RecordConstructorArgs):
    """
    Some entries of a one-dimensional observation are always 0, as where RL-Zoo masks velocities.

    :param env: with observations in a Box (n,)
    :param fields: which entries
    """

    def __init__(self, env: gym.Env[Any, Any], fields: Sequence[int]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, fields=fields)
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Box)
        self.mask = np.ones(env.observation_space.shape, dtype=env.observation_space.dtype)
        self.mask[list(fields)] = 0

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """The observation with its masked entries at 0."""
        masked: NDArray[Any] = observation * self.mask
        return masked
