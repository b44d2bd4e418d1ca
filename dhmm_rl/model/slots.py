"""
The slots of a step, as tensors.

Shapes: C slots, n the ids of the widest slot.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dhmm_rl.model.steps import can_inspect
from dhmm_rl.tokens import PAD_ID, Slot

MAX_PADDING = 4
"""Slots are computed together as long as padding them to the widest multiplies their number of ids by at most this."""


def slot_table(slots: Sequence[Slot]) -> Tensor:
    """The ids of every slot, -1 beyond them, (C, n)."""
    ids = torch.arange(max(slot.stop - slot.start for slot in slots)) + torch.tensor([slot.start for slot in slots])[:, None]
    return torch.where(ids < torch.tensor([slot.stop for slot in slots])[:, None], ids, PAD_ID)


def group_slots(slots: Sequence[Slot]) -> list[tuple[list[int], int]]:
    """Groups of slots of similar size, each with the size of its largest; a single group where that wastes little."""
    sizes = [slot.stop - slot.start for slot in slots]
    if len(slots) * max(sizes) <= MAX_PADDING * sum(sizes):
        return [(list(range(len(slots))), max(sizes))]
    groups: dict[int, list[int]] = {}
    for j, size in enumerate(sizes):
        groups.setdefault((size - 1).bit_length(), []).append(j)
    return [(group, max(sizes[j] for j in group)) for group in groups.values()]


def sum_before(x: Tensor) -> Tensor:
    """Sum over the slots before each slot, for (C, ...). Later slots do not change it, not even by rounding."""
    if not can_inspect(x):  # on a GPU, and in compiled code
        return F.pad(x[:-1].cumsum(dim=0), (0, 0) * (x.dim() - 1) + (1, 0))
    summed: Tensor = _SumBefore.apply(x)  # type: ignore[no-untyped-call]
    return summed


class _SumBefore(torch.autograd.Function):
    """A running sum, slot by slot: ``cumsum`` is several times slower over a dimension that is not the last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _running_sum(x, range(len(x)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _running_sum(grads[0], range(len(grads[0]))[::-1])


def _running_sum(x: Tensor, order: Sequence[int]) -> Tensor:
    """For each slot, the sum over those before it in an order, (C, ...)."""
    summed = torch.empty_like(x)
    parts, sums = x.unbind(0), summed.unbind(0)
    sums[order[0]].zero_()
    for previous, j in itertools.pairwise(order):
        torch.add(sums[previous], parts[previous], out=sums[j])
    return summed
