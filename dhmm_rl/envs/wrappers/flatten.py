"""Observations of any kind as one array, for vector environments that hold arrays only."""

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.tokens import FieldSpace, bounded
from dhmm_rl.tokens.fields import flatten

ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class FlattenFields(gym.ObservationWrapper[NDArray[Any], Any, Any], gym.utils.RecordConstructorArgs):
    """
    An observation becomes the array of its field values, (F,), and keeps their names: tokens are the same with and without.

    SB3's vector environments hold no texts, no sequences, and no Dict in a Dict; with this they hold them all.

    :param env: any environment whose observations can be tokenized
    :param size: longest sequence, largest graph, and longest text where it has none of its own
    :raises InputError: when a space needs a size and none is given
    """

    def __init__(self, env: gym.Env[Any, Any], size: int | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, size=size)
        super().__init__(env)
        self.fields = FieldSpace(bounded(env.observation_space, size))
        self.observation_space = self.fields

    def observation(self, observation: Any) -> NDArray[Any]:
        """The field values of an observation."""
        return flatten(self.fields.space, observation).astype(self.fields.dtype, copy=False)


def vec_env_supports(space: spaces.Space[Any]) -> bool:
    """Whether SB3's vector environments can hold observations of a space: arrays, or one Dict or Tuple of arrays."""
    if isinstance(space, spaces.Dict):
        return all(isinstance(part, ARRAY_SPACES) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return all(isinstance(part, ARRAY_SPACES) for part in space.spaces)
    return isinstance(space, ARRAY_SPACES)


def flatten_if_needed(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment, in :class:`FlattenFields` where SB3's vector environments could not hold its observations."""
    return env if vec_env_supports(env.observation_space) else FlattenFields(env)
