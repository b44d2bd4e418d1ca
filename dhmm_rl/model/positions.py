"""
Embeddings of positions: rotary tables and learned positions.

Shapes: B sequences, T steps, D width, H heads, P axes of position ids.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dhmm_rl.errors import InputError
from dhmm_rl.model.embedding import STD
from dhmm_rl.model.steps import can_inspect

ROTARY_ROWS = 1024
"""Number of positions for which the rotary tables of single steps are computed at a time."""


@functools.lru_cache(maxsize=64)
def _axis_frequencies(head_size: int, reach: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The axis that each angle belongs to, and its frequency, each (head_size / 2,)."""
    pair = torch.arange(head_size // 2, device=device)
    axis, rank = pair % len(reach), pair // len(reach)
    longest = torch.tensor([2.0 * max(farthest, 1) for farthest in reach], dtype=torch.float64, device=device)[axis]
    return axis, math.pi / 2 * longest ** -(rank.double() / max(int(rank.max()), 1))


def rotary_axes(positions: Tensor, head_size: int, reach: Sequence[int]) -> tuple[Tensor, Tensor]:
    """
    Rotary tables of position ids on several axes, which take turns in the angles.

    The wavelengths of an axis grow geometrically from 4 ids to 8 times its reach, so that all differences within reach can be
    told apart.

    :param positions: position ids, (B, T, P)
    :param head_size: width of a head
    :param reach: the largest difference that attention sees, on each axis
    :return: cosines and sines, each (B, 1, T, head_size / 2), fp32
    """
    axis, frequency = _axis_frequencies(head_size, tuple(reach), positions.device)
    angles = (positions.double()[..., axis] * frequency)[:, None]
    return angles.cos().float(), angles.sin().float()


def rotary_table(positions: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """
    Cosines and sines of rotary position embedding (Su et al. 2021, arXiv 2104.09864, section 3.2).

    Angles are computed in double precision, so that step 1 000 000 is as exact as step 1.

    :param positions: positions of any shape
    :param head_size: width of a head
    :return: each (..., head_size / 2), fp32; on a GPU and in compiled code (..., head_size), see :func:`rotate`
    """
    if can_inspect(positions):
        return _halves(positions, head_size)
    tables: tuple[Tensor, Tensor] = full_rotary_table(positions, head_size)
    return tables


def _halves(positions: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** (-torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float64) / head_size)
    angles = positions.double()[..., None] * frequency
    return angles.cos().float(), angles.sin().float()


# An operator, because compiled code would otherwise compute cosines in double precision for every number that it rotates
@torch.library.custom_op("dhmm_rl::full_rotary_table", mutates_args=())
def full_rotary_table(positions: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """The factors of each number and of its partner in the other half of a head, each (..., head_size)."""
    cos, sin = _halves(positions, head_size)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


@full_rotary_table.register_fake
def _(positions: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, head_size)
    return positions.new_empty(shape, dtype=torch.float32), positions.new_empty(shape, dtype=torch.float32)


@functools.lru_cache(maxsize=64)
def _rotary_rows(chunk: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    cos, sin = rotary_table(torch.arange(ROTARY_ROWS, device=device) + chunk * ROTARY_ROWS, head_size)
    return cos[:, None], sin[:, None]


def rotary_at(position: int | Tensor, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """
    The rotary table of one position, each (1, head_size / 2).

    :param position: the position; tables of numbers are computed for many positions at once and cached. Or a tensor, (1,)
    :param head_size: width of a head
    :param device: device of the table
    """
    if isinstance(position, Tensor):
        return rotary_table(position, head_size)
    cos, sin = _rotary_rows(position // ROTARY_ROWS, head_size, device)
    return cos[position % ROTARY_ROWS], sin[position % ROTARY_ROWS]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """
    Rotate queries or keys.

    :param x: queries or keys, (B, H, T, head_size)
    :param table: rotary table of their positions, (..., T, head_size / 2). Or (..., T, head_size), for few and simple kernels
        on a GPU
    """
    cos, sin = (part.to(x.dtype) for part in table)
    if cos.shape[-1] == x.shape[-1]:
        partner = x.view(*x.shape[:-1], 2, -1).flip(-2).flatten(-2)
        return x * cos + partner * sin
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class LearnedPositions(nn.Embedding):
    """
    GPT-2's own embedding of positions, which begins as sines and cosines.

    :param positions: number of positions
    :param embed_size: width D
    """

    def __init__(self, positions: int, embed_size: int) -> None:
        super().__init__(positions, embed_size)
        self.weight.data = learned_positions(positions, embed_size) * STD

    def forward(self, positions: Tensor) -> Tensor:
        """
        Embeddings (B, T, D) of positions (B, T), which are negative for padding.

        :raises InputError: for a position past the last, on a CPU
        """
        if can_inspect(positions) and positions.numel() and int(positions.max()) >= self.num_embeddings:
            raise InputError(
                f"position {int(positions.max())} is past max_len {self.num_embeddings}; learned positions end there, "
                "rotary do not"
            )
        return super().forward(positions.clamp_min(0))


def learned_positions(positions: int, embed_size: int) -> Tensor:
    """
    Sines and cosines with which learned positions begin, (positions, D), of standard deviation 1.

    Wavelengths grow geometrically from 4 positions to four times their number (Vaswani et al. 2017, arXiv 1706.03762, section
    3.5). A linear map turns these features into those of an earlier or a mirrored position, for all positions at once, so
    attention that finds one place finds all.

    :param positions: number of positions
    :param embed_size: width D
    """
    count = (embed_size + 1) // 2
    wavelength = 4 * float(max(positions, 2)) ** torch.linspace(0, 1, count)
    phase = torch.arange(positions)[:, None] * (2 * math.pi / wavelength)
    return math.sqrt(2) * torch.cat([phase.sin(), phase.cos()], dim=1)[:, :embed_size]
