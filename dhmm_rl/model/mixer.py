"""
Transformer blocks, and the seam where attention or any other causal mixer of steps fits in.

A new mixer is one file with a subclass of :class:`Mixer` and one line in :data:`dhmm_rl.model.config.MIXERS`.

Shapes: B sequences, T steps, S steps that attention looks at, D width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.model.cache import KeyValueCache
from dhmm_rl.model.config import MIXERS, DHMMConfig, load_class


class Context(NamedTuple):
    """
    What all layers of a pass know of its steps.

    :param valid: steps that are not padding, (B, T)
    :param starts: steps that do not depend on those before them, (B, T); ``None`` if there are none
    :param attention_mask: mask of the steps that each step sees, (B, 1, T, S); ``None`` for all up to and including itself
    :param rotary: tables of the T positions for :func:`~dhmm_rl.model.positions.rotate`; ``None`` without rotary positions
    :param cache_index: index of the single step of this pass in the caches; ``None`` if the steps are read in parallel
    :param chunked: whether attention reads the steps in chunks as long as the window, see
        :func:`~dhmm_rl.model.attention_masks.chunked_mask`; the mask is then (B · T / W, 1, W, 2W)
    """

    valid: Tensor
    starts: Tensor | None
    attention_mask: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    cache_index: int | Tensor | None = None
    chunked: bool = False


class Mixer(nn.Module):
    """
    The part of a block that mixes steps: causal, within an episode, and the same in parallel as one step at a time.

    :param config: hyperparameters of the model
    """

    rotary = True
    """Whether the mixer uses rotary positions."""
    chunks = False
    """Whether the mixer can read steps in chunks; see :class:`Context`."""
    window: int
    """Number of steps, including the present one, that an output may depend on: a burn-in of this length rebuilds it."""

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__()
        self.window = config.window or config.max_len

    def initial_cache(self, batch: int, device: torch.device) -> KeyValueCache:
        """An empty cache for a number of streams."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context, cache: KeyValueCache | None = None, last: int | None = None) -> Tensor:
        """
        Mix steps. One step at a time is the same as in parallel: T = 1 on a cache.

        :param x: inputs, (B, T, D)
        :param context: masks and positions of the steps
        :param cache: memory of the layer, written in place; ``None`` if nothing comes before or after this pass
        :param last: number of steps to return, the last ones; all by default
        :return: (B, T, D), or (B, last, D)
        """
        raise NotImplementedError


class Block(nn.Module):
    """
    Pre-norm GPT-2 block: a mixer, then a GELU network. Parameters are named as in GPT-2.

    :param config: hyperparameters of the model
    """

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__()
        width, hidden = config.embed_size, config.ff_hidden or 4 * config.embed_size
        self.ln_1 = nn.LayerNorm(width)
        self.attn: Mixer = load_class(MIXERS, config.mixer)(config)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor, context: Context, cache: KeyValueCache | None = None, last: int | None = None) -> Tensor:
        """Arguments and result are those of :meth:`Mixer.forward`; work that only the steps left out need is skipped."""
        mixed = self.attn(self.ln_1(x), context, cache, last)
        x = (x if last is None else x[:, -last:]) + mixed
        added: Tensor = self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return x + added


def init_weights(blocks: nn.ModuleList) -> None:
    """
    Normal weights of standard deviation 0.55 / sqrt(inputs), divided by the root of the number of residual branches where one
    ends.

    At GPT-2's width of 768 that is GPT-2's 0.02. At a width of 64, 0.02 would make attention so faint that a policy gradient
    rarely finds what happened in the past.
    """
    for block in blocks:
        for name, parameter in block.named_parameters():
            if parameter.dim() == 2:
                scale = 1 / math.sqrt(2 * len(blocks)) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.55 * scale / math.sqrt(parameter.shape[1]))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
