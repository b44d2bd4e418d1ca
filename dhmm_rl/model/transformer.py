"""
The stack of blocks, with the masks, the rotary positions and the cache that they share.

Shapes: B sequences, T steps, D width, W window, P axes of position ids.
"""

from typing import cast

import torch
from torch import Tensor, nn

from dhmm_rl.model.attention_masks import chunked_mask, chunks_pay, parallel_mask, within_reach
from dhmm_rl.model.cache import Cache
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.inputs import check_position_ids
from dhmm_rl.model.mixer import Block, Context, Mixer
from dhmm_rl.model.positions import rotary_at, rotary_axes, rotary_table


class Transformer(nn.ModuleList):
    """
    Pre-norm blocks, in order.

    :param config: hyperparameters of the model
    """

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__(Block(config) for _ in range(config.layers))
        self.reach, self.head_size = config.reach, config.embed_size // config.heads
        self.rotary = config.positions != "learned" and all(mixer.rotary for mixer in self.mixers)
        self.default_window = config.window or config.max_len
        self.chunks = config.reach is None and all(mixer.chunks for mixer in self.mixers)

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of each block."""
        return [cast(Block, block).attn for block in self]

    @property
    def window(self) -> int:
        """Number of steps, including the present one, that a block sees."""
        return max([mixer.window for mixer in self.mixers] or [self.default_window])

    @window.setter
    def window(self, window: int) -> None:
        for mixer in self.mixers:
            mixer.window = window

    @property
    def burn_in(self) -> int:
        """Number of earlier steps that an output depends on."""
        return sum(mixer.window - 1 for mixer in self.mixers)

    def new_cache(self, batch: int, device: torch.device) -> Cache:
        """An empty cache of all blocks for a number of streams."""
        valid = torch.zeros(batch, self.window, dtype=torch.bool, device=device)
        position_ids = torch.zeros(batch, self.window, len(self.reach or ()), dtype=torch.long, device=device)
        time = torch.zeros(1, dtype=torch.long, device=device) if device.type == "cuda" else 0
        return Cache([mixer.initial_cache(batch, device) for mixer in self.mixers], valid, position_ids, time)

    def forward(
        self,
        x: Tensor,
        valid: Tensor,
        starts: Tensor | None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """
        Run all blocks. One step at a time is the same as in parallel: T = 1 on a cache.

        :param x: inputs, (B, T, D)
        :param valid: steps that are not padding, (B, T)
        :param starts: steps that do not depend on those before them, (B, T); ``None`` if there are none
        :param position_ids: position ids, (B, T, P), in a model with a reach
        :param cache: memory of the blocks, written in place; it is empty, or T is 1
        :param last: number of steps to return, the last ones; all by default
        :return: (B, T, D), or (B, last, D)
        """
        context = self._context(valid, starts, position_ids, cache)
        for i, block in enumerate(self):
            x = block(x, context, None if cache is None else cache.layers[i], last if i == len(self) - 1 else None)
        return x

    def _context(self, valid: Tensor, starts: Tensor | None, position_ids: Tensor | None, cache: Cache | None) -> Context:
        """What all blocks know of the steps: which steps see which, and at which rotary positions they are."""
        steps = valid.shape[1]
        rotary = mask = cache_index = None
        chunked = False
        if self.reach is not None:
            position_ids = check_position_ids(position_ids, self.reach)
            rotary = rotary_axes(position_ids, self.head_size, self.reach)
        if cache is not None and steps == 1:
            # One step sees the entries of the cache that belong to its episode.
            cache_index = cache.cache_index
            mask = cache.add_step(valid, starts, position_ids, self.reach)
        else:
            # Steps in parallel see each other: no mask is needed if each sees all steps before it.
            episode = None if starts is None else starts.cumsum(dim=1)
            chunked = self.chunks and chunks_pay(steps, self.window, valid.device)
            if chunked:
                mask = chunked_mask(valid, episode, self.window)
            elif episode is not None or self.window < steps or self.reach is not None:
                mask = parallel_mask(valid, episode, self.window)
                if self.reach is not None and position_ids is not None:
                    mask = mask & within_reach(position_ids, position_ids, self.reach)
            if cache is not None:
                cache.fill(valid, episode)
        if self.rotary and self.reach is None:
            if cache_index is not None and cache is not None:
                rotary = rotary_at(cache.time, self.head_size, valid.device)
            else:
                rotary = rotary_table(torch.arange(steps, device=valid.device), self.head_size)
        return Context(valid, starts, mask, rotary, cache_index, chunked)
