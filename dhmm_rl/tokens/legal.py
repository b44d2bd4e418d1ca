"""Random actions that an environment's masks allow."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.vec_env import VecEnv


def random_actor(env: VecEnv) -> Callable[[], NDArray[Any]]:
    """Draws a legal action for every environment, (N, ...), from the random numbers of their common action space."""
    masked = is_masking_supported(env)  # asked once: it may have to ask other processes

    def draw() -> NDArray[Any]:
        masks = get_action_masks(env) if masked else [None] * env.num_envs
        return np.array([sample(env.action_space, mask) for mask in masks])

    return draw


def random_action(env: gym.Env[Any, Any]) -> Any:
    """A legal action, drawn from the random numbers of the environment's action space."""
    return sample(env.action_space, env.get_wrapper_attr("action_masks")() if env.has_wrapper_attr("action_masks") else None)


def sample(space: spaces.Space[Any], mask: Any = None) -> Any:
    """
    Draw from an action space.

    :param mask: which choices are legal, as sb3-contrib's MaskablePPO has it: one flag a choice, field after field, a bit's
        choices being off and on; all are when ``None``
    """
    if mask is None or not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return space.sample()
    legal = np.asarray(mask, dtype=np.int8).ravel()
    if isinstance(space, spaces.Discrete):
        return space.sample(legal)
    if isinstance(space, spaces.MultiBinary):
        off, on = np.moveaxis(legal.reshape(*space.shape, 2), -1, 0)
        return space.sample(np.where(off & on, 2, on).astype(np.int8))
    flags: list[Any] = np.split(legal, np.cumsum(space.nvec)[:-1])
    for width in reversed(space.shape[1:]):
        flags = [tuple(flags[i : i + width]) for i in range(0, len(flags), width)]
    return space.sample(tuple(flags))
