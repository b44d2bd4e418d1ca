"""
Action masks: their layout, and checks of what an environment returns.

A mask has one flag for each choice of each action field, field after field, true where the choice is legal. This is the layout
of sb3-contrib's ``MaskablePPO``. The two choices of a bit are off and on.

Shapes: N environments.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from dhmm_rl.errors import InputError


def choices_per_field(space: spaces.Space[Any]) -> list[int] | None:
    """
    Return the number of flags that each field of an action space has in a mask.

    :param space: an action space
    :return: one number per field, or ``None`` for a space whose masks depend on a tokenizer: a Box has one choice per bin
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.ravel()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    return None


def validate_masks(masks: ArrayLike | Sequence[Any], choices: Sequence[int] | None, num_envs: int) -> NDArray[np.bool_]:
    """
    Check action masks and return them as one boolean array.

    :param masks: one mask per environment; flags are booleans, or integers 0 and 1
    :param choices: number of choices of each action field; with ``None`` only the type of the flags is checked
    :param num_envs: N
    :return: masks, (N, sum of ``choices``)
    :raises InputError: for masks of another shape, for flags other than true, false, 0 and 1, and for a mask that forbids every
        choice of a field
    """
    try:
        masks = np.asarray(masks)
    except ValueError:  # rows of different lengths
        masks = np.empty(0, dtype=object)
    if masks.dtype == object:
        raise InputError(f"action masks must be arrays of booleans, one flag for each choice{_expected(choices, num_envs)}")
    if masks.dtype != np.bool_:
        if masks.dtype.kind not in "iu" or not np.isin(masks, (0, 1)).all():
            found = f"values of type {masks.dtype}" if masks.dtype.kind not in "iu" else "integers other than 0 and 1"
            raise InputError(f"action masks hold {found}; they must be booleans, true where an action is legal")
        masks = masks.astype(np.bool_)
    if choices is None:
        return masks.reshape(num_envs, -1)
    total = sum(choices)
    if masks.size != num_envs * total:
        raise InputError(f"action masks have shape {masks.shape}{_expected(choices, num_envs)}")
    masks = masks.reshape(num_envs, total)
    # Every field needs a legal choice: combine the flags of each field with "or".
    legal = masks.any(axis=1, keepdims=True)
    if len(choices) > 1:
        legal = np.logical_or.reduceat(masks, np.cumsum([0, *choices[:-1]]), axis=1)
    if not legal.all():
        environment, field = np.argwhere(~legal)[0]
        of = f" in field {field}" if len(choices) > 1 else ""
        raise InputError(f"the action mask of environment {environment} forbids every action{of}")
    return masks


def _expected(choices: Sequence[int] | None, num_envs: int) -> str:
    return "" if choices is None else f"; {num_envs} environments of {sum(choices)} choices were expected"
