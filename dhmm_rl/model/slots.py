"""
The slots of a step beside one another.

Shapes: B sequences, T steps, C slots, n the ids of the widest slot.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dhmm_rl.tokens import NOTHING, Slot

PADDING = 4
"""Slots are treated together as long as padding them to the widest makes no more than so many times their ids."""
CHUNK = 2**22
"""So many numbers of a step's slots are worked on at once: larger arrays leave the cache, and are given back at every use."""


def slot_table(slots: Sequence[Slot]) -> Tensor:
    """The ids of every slot, -1 beyond them, (C, n)."""
    ids = torch.arange(max(slot.stop - slot.start for slot in slots)) + torch.tensor([slot.start for slot in slots])[:, None]
    return torch.where(ids < torch.tensor([slot.stop for slot in slots])[:, None], ids, NOTHING)


def group_slots(slots: Sequence[Slot]) -> list[tuple[list[int], int]]:
    """Numbers of slots that are about equally wide, and the width of the widest; all together where that wastes little."""
    widths = [slot.stop - slot.start for slot in slots]
    if len(slots) * max(widths) <= PADDING * sum(widths):
        return [(list(range(len(slots))), max(widths))]
    groups: dict[int, list[int]] = {}
    for j, width in enumerate(widths):
        groups.setdefault((width - 1).bit_length(), []).append(j)
    return [(some, max(widths[j] for j in some)) for some in groups.values()]


def sum_before(x: Tensor) -> Tensor:
    """Sum over the slots before each slot, for (B, T, C, ...); what follows has no part in it, not even by rounding."""
    summed: Tensor = _SumBefore.apply(x)  # type: ignore[no-untyped-call]
    return summed


class _SumBefore(torch.autograd.Function):
    """A running sum whose gradient needs no flipping: what comes after a slot is all there is less what comes up to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        summed = torch.zeros_like(x)
        torch.cumsum(x[:, :, :-1], dim=2, out=summed[:, :, 1:])
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].sum(dim=2, keepdim=True) - grads[0].cumsum(dim=2)
