"""
What attention remembers of the steps it has read.

Shapes: B streams, T steps, H heads, W window, P axes of position ids, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dhmm_rl.model.attention_masks import within_reach


class KeyValueCache(NamedTuple):
    """
    The keys and values of one layer, in rings: the step at time t is at index ``t % W``.

    :param keys: keys, already rotated, (B, H, W, D / H)
    :param values: values, the same shape
    """

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, cache_index: int | Tensor | None) -> tuple[Tensor, Tensor]:
        """
        Write the keys and values of a pass, and return those that the pass attends to.

        :param keys: keys of T steps, (B, H, T, D / H)
        :param values: values of T steps, the same shape
        :param cache_index: index of the single step of this pass; ``None`` for T steps on an empty cache
        """
        if cache_index is not None:
            _write(self.keys, 2, cache_index, keys)
            _write(self.values, 2, cache_index, values)
            return self.keys.to(keys.dtype), self.values.to(values.dtype)
        steps, window = keys.shape[2], self.keys.shape[2]
        last = torch.arange(max(steps - window, 0), steps, device=keys.device)
        self.keys[:, :, last % window] = keys[:, :, last].to(self.keys.dtype)
        self.values[:, :, last % window] = values[:, :, last].to(self.values.dtype)
        return keys, values

    def select(self, streams: Tensor) -> "KeyValueCache":
        """A copy of the cache of some streams."""
        return KeyValueCache(self.keys[streams], self.values[streams])


@dataclass
class Cache:
    """
    The caches of all layers, and which of their entries may be read. Passes write into it.

    :param layers: cache of each layer, made by its mixer
    :param cache_valid: whether an entry is a step of the present episode, (B, W)
    :param cached_position_ids: position ids of the entries, (B, W, P), in a model with a ``reach``
    :param time: number of steps that all streams have read. On a GPU it is a tensor (1,), so that a recorded step can count
    """

    layers: Sequence[KeyValueCache]
    cache_valid: Tensor
    cached_position_ids: Tensor
    time: int | Tensor = 0

    @property
    def cache_index(self) -> int | Tensor:
        """Index of the next step; a tensor (1,) if the time is one."""
        return self.time % self.cache_valid.shape[1]

    def add_step(
        self, valid: Tensor, starts: Tensor | None, position_ids: Tensor | None, reach: Sequence[int] | None
    ) -> Tensor:
        """
        Add one step of every stream.

        :param valid: whether it is a step, not padding, (B, 1)
        :param starts: whether an episode starts with it, (B, 1); ``None`` if none does
        :param position_ids: its position ids, (B, 1, P), in a model with a reach
        :param reach: the largest difference of position ids that attention sees, on each axis
        :return: which entries the step attends to, (B, 1, 1, W)
        """
        if starts is not None:
            self.cache_valid.logical_and_(~starts)
        index = self.cache_index
        _write(self.cache_valid, 1, index, valid)
        mask = self.cache_valid.clone()
        _write(mask, 1, index, torch.ones_like(valid))  # padding attends to itself, so that no row of the mask is empty
        mask = mask[:, None, None]
        if reach is not None:
            assert position_ids is not None
            _write(self.cached_position_ids, 1, index, position_ids)
            mask = mask & within_reach(position_ids, self.cached_position_ids, reach)
        return mask

    def fill(self, valid: Tensor, episode: Tensor | None) -> None:
        """
        Start from T steps: remember which of the last W are steps of the episode that is still going on.

        :param valid: whether each is a step, not padding, (B, T)
        :param episode: number of each step's episode, (B, T); ``None`` if there is only one
        """
        present = valid if episode is None else valid & (episode == episode[:, -1:])
        steps, window = valid.shape[1], self.cache_valid.shape[1]
        last = torch.arange(max(steps - window, 0), steps, device=valid.device)
        self.cache_valid[:, last % window] = present[:, last]

    def select(self, streams: Tensor) -> "Cache":
        """A copy of the cache of some streams."""
        layers = [layer.select(streams) for layer in self.layers]
        time = self.time.clone() if isinstance(self.time, Tensor) else self.time
        return Cache(layers, self.cache_valid[streams], self.cached_position_ids[streams], time)


def _write(ring: Tensor, dimension: int, index: int | Tensor, step: Tensor) -> None:
    """Write one step, of size 1 in a dimension, to an index of a ring."""
    if isinstance(index, Tensor):
        ring.index_copy_(dimension, index, step.to(ring.dtype))
    else:
        ring.narrow(dimension, index, 1).copy_(step)
