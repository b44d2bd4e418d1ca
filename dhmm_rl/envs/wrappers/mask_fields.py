"""A wrapper that hides a part of the state."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class MaskFields(gym.ObservationWrapper[NDArray[Any], Any, NDArray[Any]], gym.utils.RecordConstructorArgs):
    """
    Sets some entries of one-dimensional observations to 0, in the way in which RL-Zoo masks velocities.

    :param env: environment with observations in a Box (n,)
    :param fields: indices of the entries
    """

    def __init__(self, env: gym.Env[Any, Any], fields: Sequence[int]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, fields=fields)
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Box)
        self.mask = np.ones(env.observation_space.shape, dtype=env.observation_space.dtype)
        self.mask[list(fields)] = 0

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Return the observation with its masked entries set to 0."""
        masked: NDArray[Any] = observation * self.mask
        return masked
