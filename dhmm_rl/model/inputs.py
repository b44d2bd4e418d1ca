"""
Checks of what users pass to a model.

Shapes: B sequences, T steps, C slots, P axes of position ids.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dhmm_rl.errors import InputError
from dhmm_rl.tokens import Slot


def to_slots(ids: Tensor, slots: int) -> Tensor:
    """
    Ids as (B, T, C) integers.

    :param ids: token ids, (B, T, C), or (B, T) with one slot
    :param slots: number of slots C of the model
    :raises InputError: for another shape, and for ids that are not integers
    """
    if ids.dtype != torch.long:
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise InputError(f"ids are of type {ids.dtype}; they must be whole numbers, such as torch.long")
        ids = ids.long()
    if slots == 1 and ids.dim() == 2:
        return ids[..., None]
    if ids.dim() != 3 or ids.shape[-1] != slots:
        raise InputError(f"ids have shape {tuple(ids.shape)}; a model of {slots} slots reads (B, T, {slots})")
    return ids


def check_labels(labels: Tensor, shape: torch.Size, slots: Sequence[Slot], first_ids: Tensor, last_ids: Tensor) -> Tensor:
    """
    Labels as (B, T, C) integers.

    :param labels: ids of the steps that follow, shaped like the inputs; -1 and -100 are ignored
    :param shape: shape of the inputs
    :param slots: slots of a step
    :param first_ids: first id of each slot, (C,)
    :param last_ids: last id of each slot, (C,)
    :raises InputError: for labels of another shape or type, and for one that is not an id of its slot
    """
    if labels.shape != shape:
        raise InputError(f"labels have shape {tuple(labels.shape)}, ids {tuple(shape)}; the shapes must be equal")
    following = to_slots(labels, len(slots))
    wrong = (following >= 0) & ((following < first_ids) | (following > last_ids))
    if bool(wrong.any()):
        row, step, j = wrong.nonzero()[0].tolist()
        slot = slots[j]
        raise InputError(
            f"the label {int(following[row, step, j])} of slot {slot.name} at step {step} of sequence {row} is not one of "
            f"its ids, {slot.start} to {slot.stop - 1}; -1 and -100 are ignored"
        )
    return following


def check_position_ids(position_ids: Tensor | None, reach: Sequence[int]) -> Tensor:
    """:raises InputError: if the position ids that a model with a reach requires are missing or have another shape"""
    axes = len(reach)
    if position_ids is None or position_ids.dim() < 2 or position_ids.shape[-1] != axes:
        found = "none are" if position_ids is None else f"they have the shape {tuple(position_ids.shape)}"
        raise InputError(f"reach {list(reach)} is for position ids (…, {axes}) given with the tokens; {found}")
    return position_ids


def check_half_precision(losses: Tensor, slots: Sequence[Slot]) -> None:
    """
    Warn against training in float16.

    :param losses: loss of every token, (B, T, C)
    :param slots: slots of a step
    :raises InputError: for a loss that is not finite
    """
    overflowed = ~losses.isfinite()
    if bool(overflowed.any()):
        row, step, j = overflowed.nonzero()[0].tolist()
        raise InputError(
            f"the loss of slot {slots[j].name} at step {step} of sequence {row} is {losses[row, step, j].item()} in "
            "float16, which overflows beyond 65504; use torch.bfloat16 or torch.float32"
        )
    if losses.requires_grad:
        warnings.warn(
            "float16 is too narrow for this model's gradients without loss scaling; torch.bfloat16 needs none", stacklevel=4
        )


def in_half_precision(hidden: Tensor) -> bool:
    """Whether a pass is computed in float16."""
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or hidden.dtype == torch.float16
