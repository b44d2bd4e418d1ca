"""
GPT-2's block with attention limited to a window of steps and to the same episode, in parallel and one step at a time.

Shapes: B sequences, T steps, D width, H heads, W window, P axes of position ids.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_ROWS = 1024
"""Rotary tables of single steps are computed for so many positions at once."""


def attention_mask(valid: Tensor, episode: Tensor | None, window: int) -> Tensor:
    """
    Who may see whom.

    :param valid: steps that hold something, (B, T)
    :param episode: number of the episode that a step belongs to, (B, T); ``None`` when there is only one
    :param window: how many steps, the present one included, can be seen
    :return: booleans, (B, 1, T, T); a step that holds nothing sees itself only, so that no row is empty
    """
    steps = valid.shape[1]
    age = torch.arange(steps, device=valid.device)[:, None] - torch.arange(steps, device=valid.device)
    mask = ((age >= 0) & (age < window))[None] & valid[:, None, :]
    if episode is not None:
        mask = mask & (episode[:, :, None] == episode[:, None, :])
    return (mask | (age == 0)[None])[:, None]


def within_reach(queries: Tensor, keys: Tensor, reach: Sequence[int]) -> Tensor:
    """
    Which keys lie near enough on every axis.

    :param queries: their position ids, (B, T, P)
    :param keys: theirs, (B, S, P)
    :param reach: the largest difference on each axis
    :return: booleans, (B, 1, T, S)
    """
    axes = zip(queries.unbind(-1), keys.unbind(-1), reach, strict=True)
    near = [(query[:, :, None] - key[:, None, :]).abs() <= far for query, key, far in axes]
    return torch.stack(near).all(dim=0)[:, None]


@functools.lru_cache(maxsize=64)
def _axis_frequencies(head_size: int, reach: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The axis that each angle is for, and its frequency, each (head_size / 2,)."""
    pair = torch.arange(head_size // 2, device=device)
    axis, rank = pair % len(reach), pair // len(reach)
    longest = torch.tensor([2.0 * max(far, 1) for far in reach], dtype=torch.float64, device=device)[axis]
    return axis, math.pi / 2 * longest ** -(rank.double() / max(int(rank.max()), 1))


def rotary_axes(positions: Tensor, head_size: int, reach: Sequence[int]) -> tuple[Tensor, Tensor]:
    """
    Rotary tables of position ids on several axes, whose angles take turns.

    The wavelengths of an axis go geometrically from 4 ids to 8 times its reach, so that all differences within reach are well
    told apart.

    :param positions: (B, T, P)
    :return: each (B, 1, T, head_size / 2), fp32
    """
    axis, frequency = _axis_frequencies(head_size, tuple(reach), positions.device)
    angles = (positions.double()[..., axis] * frequency)[:, None]
    return angles.cos().float(), angles.sin().float()


def rotary_table(positions: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """
    Cosines and sines of rotary position embedding (Su et al. 2021, arXiv 2104.09864, section 3.2).

    Angles are computed in double precision, so that step 1 000 000 is as exact as step 1.

    :param positions: any shape
    :return: each (..., head_size / 2), fp32
    """
    frequency = 10000.0 ** (-torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float64) / head_size)
    angles = positions.double()[..., None] * frequency
    return angles.cos().float(), angles.sin().float()


@functools.lru_cache(maxsize=64)
def _rotary_rows(chunk: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    cos, sin = rotary_table(torch.arange(ROTARY_ROWS, device=device) + chunk * ROTARY_ROWS, head_size)
    return cos[:, None], sin[:, None]


def rotary_at(position: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rotary table of one position, each (1, head_size / 2); computed for many positions at once and kept."""
    cos, sin = _rotary_rows(position // ROTARY_ROWS, head_size, device)
    return cos[position % ROTARY_ROWS], sin[position % ROTARY_ROWS]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Apply a rotary table (..., T, head_size / 2) to queries or keys (B, H, T, head_size)."""
    cos, sin = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention; parameters are named as in GPT-2."""

    def __init__(self, embed_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(embed_size, 3 * embed_size)
        self.c_proj = nn.Linear(embed_size, embed_size)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, T, D / H)."""
        batch, steps, width = x.shape
        q, k, v = self.c_attn(x).view(batch, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Mix values; causal over the whole sequence when there is no mask. Returns (B, T, D)."""
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        projected: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Pre-norm GPT-2 block: attention, then a GELU network of width ``ff_hidden``."""

    def __init__(self, embed_size: int, heads: int, ff_hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(embed_size)
        self.attn = Attention(embed_size, heads)
        self.ln_2 = nn.LayerNorm(embed_size)
        self.c_fc = nn.Linear(embed_size, ff_hidden)
        self.c_proj = nn.Linear(ff_hidden, embed_size)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        table: tuple[Tensor, Tensor] | None,
        last: int,
        cache: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """
        :param x: (B, T, D)
        :param mask: (B, 1, T, T), or ``None`` for plain causal attention
        :param table: rotary table of the T positions
        :param last: return only so many of the last steps, and skip the work that only the others need
        :param cache: rings of keys and values, (B, H, W, D / H), that are to remember the last W steps
        """
        steps = x.shape[1]
        q, k, v = self.attn.split(self.ln_1(x))
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            window = cache[0].shape[2]
            kept = torch.arange(max(steps - window, 0), steps, device=x.device)
            for ring, made in zip(cache, (k, v), strict=True):
                ring[:, :, kept % window] = made[:, :, kept].to(ring.dtype)
        if last < steps:
            if mask is None:
                mask = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
            x, q, mask = x[:, -last:], q[..., -last:, :], mask[..., -last:, :]
        return self._finish(x + self.attn.attend(q, k, v, mask))

    def step(
        self, x: Tensor, keys: Tensor, values: Tensor, at: int, visible: Tensor, table: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """
        One step against a ring cache, which is written in place.

        :param x: (B, 1, D)
        :param keys: cached keys, already rotated, (B, H, W, D / H)
        :param values: (B, H, W, D / H)
        :param at: the ring's place for this step
        :param visible: which places may be seen, (B, 1, 1, W)
        :param table: rotary table of this position
        """
        q, k, v = self.attn.split(self.ln_1(x))
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        keys[:, :, at], values[:, :, at] = k[:, :, 0].to(keys.dtype), v[:, :, 0].to(values.dtype)
        return self._finish(x + self.attn.attend(q, keys.to(q.dtype), values.to(q.dtype), visible))

    def _finish(self, x: Tensor) -> Tensor:
        added: Tensor = self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return x + added


def init_weights(blocks: nn.ModuleList) -> None:
    """
    Normal with deviation 0.55 / sqrt(inputs), divided by the root of the number of residual branches where one ends.

    At GPT-2's width of 768 that is its 0.02. At a width of 64, 0.02 would leave attention so faint that a policy gradient
    rarely finds what lies in the past.
    """
    for block in blocks:
        for name, parameter in block.named_parameters():
            if parameter.dim() == 2:
                scale = 1 / math.sqrt(2 * len(blocks)) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.55 * scale / math.sqrt(parameter.shape[1]))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
