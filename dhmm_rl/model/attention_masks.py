"""
Which steps attention sees.

Shapes: B sequences, T steps that look, S steps that are looked at, W window, P axes of position ids.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def chunks_pay(steps: int, window: int, device: torch.device) -> bool:
    """Return whether reading steps in chunks, at a cost that grows with T · W, is faster than with a mask of T² entries."""
    return steps >= (16 if device.type == "cpu" else 4) * window


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


def chunked_mask(valid: Tensor, episode: Tensor | None, window: int) -> Tensor:
    """
    The mask of a parallel pass in chunks of W steps, each of which sees its own chunk and the one before it.

    :param valid: steps that are not padding, (B, T)
    :param episode: number of the episode that each step belongs to, (B, T); ``None`` if there is only one
    :param window: number of steps that can be seen, including the present one, W
    :return: booleans, (B · ⌈T / W⌉, 1, W, 2W); padding sees only itself, so that no row is empty
    """
    index = torch.arange(window, device=valid.device)
    age = index[:, None] + window - torch.arange(2 * window, device=valid.device)
    mask = ((age >= 0) & (age < window)) & with_previous(valid, window)[:, None]
    if episode is not None:
        episodes = with_previous(episode, window)
        mask = mask & (episodes[:, window:, None] == episodes[:, None])
    return (mask | (age == 0))[:, None]


def to_chunks(x: Tensor, window: int) -> Tensor:
    """Cut T steps (B, T, ...) into chunks, (B · ⌈T / W⌉, W, ...); the last one is filled with zeros."""
    batch, steps = x.shape[:2]
    chunks = -(-steps // window)
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, chunks * window - steps))
    return x.reshape(batch * chunks, window, *x.shape[2:])


def with_previous(x: Tensor, window: int) -> Tensor:
    """Cut T steps (B, T, ...) into chunks with the chunk before each, (B · ⌈T / W⌉, 2W, ...), zeros before the first."""
    batch, steps = x.shape[:2]
    chunks = -(-steps // window)
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (window, chunks * window - steps)).view(batch, chunks + 1, window, *x.shape[2:])
    return torch.cat([x[:, :-1], x[:, 1:]], dim=2).flatten(0, 1)


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
