"""Action masks: how they are checked, and random actions that they allow."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.errors import InputError


def choices_of(space: spaces.Space[Any]) -> list[int] | None:
    """How many choices each field of an action space has in a mask; ``None`` for a Box, which has as many as it gets bins."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.ravel()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    return None


def action_masks_of(env: VecEnv) -> list[Any]:
    """What the environments' method ``action_masks`` returns now, unchecked, one entry for each environment."""
    return env.env_method("action_masks")


def checked_masks(masks: ArrayLike | Sequence[Any], choices: Sequence[int] | None, environments: int) -> NDArray[np.bool_]:
    """
    Action masks as booleans (N, all choices).

    :param masks: true, or 1, where a choice is legal: those of one environment after the other, and in each of one field
        after the other
    :param choices: how many choices each action field has; ``None`` if that is not known, when only the values are checked
    :raises InputError: for masks of another shape, for values other than true, false, 0 and 1, and where nothing is legal
    """
    try:
        masks = np.asarray(masks)
    except ValueError:  # rows of different lengths
        masks = np.empty(0, dtype=object)
    if masks.dtype == object:
        raise InputError(f"action masks must be arrays of booleans, one flag for each choice{_expected(choices, environments)}")
    if masks.dtype != np.bool_:
        if masks.dtype.kind not in "iu" or not np.isin(masks, (0, 1)).all():
            found = f"values of type {masks.dtype}" if masks.dtype.kind not in "iu" else "integers other than 0 and 1"
            raise InputError(f"action masks hold {found}; they must be booleans, true where an action is legal")
        masks = masks.astype(np.bool_)
    if choices is None:
        return masks.reshape(environments, -1)
    total = sum(choices)
    if masks.size != environments * total:
        raise InputError(f"action masks have shape {masks.shape}{_expected(choices, environments)}")
    masks = masks.reshape(environments, total)
    legal = masks.any(axis=1, keepdims=True)
    if len(choices) > 1:
        legal = np.logical_or.reduceat(masks, np.cumsum([0, *choices[:-1]]), axis=1)
    if not legal.all():
        environment, field = np.argwhere(~legal)[0]
        of = f" in field {field}" if len(choices) > 1 else ""
        raise InputError(f"the action mask of environment {environment} forbids every action{of}")
    return masks


def _expected(choices: Sequence[int] | None, environments: int) -> str:
    return "" if choices is None else f"; {environments} environments of {sum(choices)} choices were expected"


def random_actor(env: VecEnv) -> Callable[[], NDArray[Any]]:
    """Draws a legal action for every environment, (N, ...), from the random numbers of their common action space."""
    masked = is_masking_supported(env)  # asked once: it may have to ask other processes
    choices = choices_of(env.action_space)

    def draw() -> NDArray[Any]:
        masks = checked_masks(action_masks_of(env), choices, env.num_envs) if masked else [None] * env.num_envs
        return np.array([_sample(env.action_space, mask) for mask in masks])

    return draw


def random_action(env: gym.Env[Any, Any]) -> Any:
    """A legal action, drawn from the random numbers of the environment's action space."""
    if not env.has_wrapper_attr("action_masks"):
        return env.action_space.sample()
    mask = env.get_wrapper_attr("action_masks")()
    return _sample(env.action_space, checked_masks([mask], choices_of(env.action_space), 1)[0])


def _sample(space: spaces.Space[Any], mask: NDArray[np.bool_] | None) -> Any:
    """
    Draw from an action space.

    :param mask: which choices are legal, as sb3-contrib's MaskablePPO has it: one flag a choice, field after field, a bit's
        choices being off and on; all are when ``None``
    """
    if mask is None or not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return space.sample()
    legal = mask.astype(np.int8)
    if isinstance(space, spaces.Discrete):
        return space.sample(legal)
    if isinstance(space, spaces.MultiBinary):
        off, on = np.moveaxis(legal.reshape(*space.shape, 2), -1, 0)
        return space.sample(np.where(off & on, 2, on).astype(np.int8))
    flags: list[Any] = np.split(legal, np.cumsum(space.nvec)[:-1])
    for width in reversed(space.shape[1:]):
        flags = [tuple(flags[i : i + width]) for i in range(0, len(flags), width)]
    return space.sample(tuple(flags))
