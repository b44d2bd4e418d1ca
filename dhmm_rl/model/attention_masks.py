"""
Which steps attention sees.

Shapes: B sequences, T steps that look, S steps that are looked at, P axes of position ids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def parallel_mask(valid: Tensor, episode: Tensor | None, window: int) -> Tensor:
    """
    The mask of a parallel pass.

    :param valid: steps that are not padding, (B, T)
    :param episode: number of the episode that each step belongs to, (B, T); ``None`` if there is only one
    :param window: number of steps that can be seen, including the present one
    :return: booleans, (B, 1, T, T); padding sees only itself, so that no row is empty
    """
    steps = valid.shape[1]
    age = torch.arange(steps, device=valid.device)[:, None] - torch.arange(steps, device=valid.device)
    mask = ((age >= 0) & (age < window))[None] & valid[:, None, :]
    if episode is not None:
        mask = mask & (episode[:, :, None] == episode[:, None, :])
    return (mask | (age == 0)[None])[:, None]


def within_reach(queries: Tensor, keys: Tensor, reach: Sequence[int]) -> Tensor:
    """
    Which keys are near enough on every axis.

    :param queries: position ids of the queries, (B, T, P)
    :param keys: position ids of the keys, (B, S, P)
    :param reach: the largest difference on each axis
    :return: booleans, (B, 1, T, S)
    """
    axes = zip(queries.unbind(-1), keys.unbind(-1), reach, strict=True)
    near = [(query[:, :, None] - key[:, None, :]).abs() <= farthest for query, key, farthest in axes]
    return torch.stack(near).all(dim=0)[:, None]
