"""
The slots of a step beside one another.

Shapes: B sequences, T steps, C slots, n the ids of the widest slot.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dhmm_rl.tokens import PAD_ID, Slot

PADDING = 4
"""Slots are treated together as long as padding them to the widest makes no more than so many times their ids."""
CHUNK = 2**21
"""So many numbers of a step's slots are worked on at once: larger arrays leave the cache."""


class SlotHeads(NamedTuple):
    """
    What the logits of c slots are made of.

    :param padded: whether some of these slots have fewer than n ids
    :param ids: -1 beyond a slot's ids, (c, n)
    :param head: of the transformer, (c, n, D); ``None`` without one
    :param emissions: probability of each id in each state, (c, N, K, n); ``None`` without a latent layer
    """

    padded: bool
    ids: Tensor
    head: Tensor | None
    emissions: Tensor | None


def slot_table(slots: Sequence[Slot]) -> Tensor:
    """The ids of every slot, -1 beyond them, (C, n)."""
    ids = torch.arange(max(slot.stop - slot.start for slot in slots)) + torch.tensor([slot.start for slot in slots])[:, None]
    return torch.where(ids < torch.tensor([slot.stop for slot in slots])[:, None], ids, PAD_ID)


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
    """Sum over the slots before each slot, for (C, ...); what follows has no part in it, not even by rounding."""
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
    """For each slot the sum over those before it in an order, (C, ...)."""
    summed = torch.empty_like(x)
    parts, sums = x.unbind(0), summed.unbind(0)
    sums[order[0]].zero_()
    for before, j in itertools.pairwise(order):
        torch.add(sums[before], parts[before], out=sums[j])
    return summed
