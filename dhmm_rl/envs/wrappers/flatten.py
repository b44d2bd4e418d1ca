"""A wrapper that turns observations of any kind into one array, for vector environments that hold arrays only."""

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.tokens import FieldSpace, bounded
from dhmm_rl.tokens.fields import flatten

ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class FlattenFields(gym.ObservationWrapper[NDArray[Any], Any, Any], gym.utils.RecordConstructorArgs):
    """
    Turns an observation into the array of its field values, (F,). The fields keep their names, so tokens do not change.

    SB3's vector environments cannot hold texts, sequences, or a Dict inside a Dict. They can hold these arrays.

    :param env: environment with observations that can be tokenized
    :param size: longest sequence, largest graph, and longest text where the space does not say
    :raises InputError: if a space needs a size and none is given
    """

    def __init__(self, env: gym.Env[Any, Any], size: int | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, size=size)
        super().__init__(env)
        self.fields = FieldSpace(bounded(env.observation_space, size))
        self.observation_space = self.fields

    def observation(self, observation: Any) -> NDArray[Any]:
        """Return the field values of an observation."""
        return flatten(self.fields.space, observation).astype(self.fields.dtype, copy=False)


def vec_env_supports(space: spaces.Space[Any]) -> bool:
    """Return whether SB3's vector environments can hold observations of a space: arrays, or one Dict or Tuple of arrays."""
    if isinstance(space, spaces.Dict):
        return all(isinstance(part, ARRAY_SPACES) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return all(isinstance(part, ARRAY_SPACES) for part in space.spaces)
    return isinstance(space, ARRAY_SPACES)


def flatten_if_needed(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Wrap an environment in :class:`FlattenFields` if SB3's vector environments cannot hold its observations."""
    return env if vec_env_supports(env.observation_space) else FlattenFields(env)
