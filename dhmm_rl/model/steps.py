"""
The steps that a pass reads: which are padding, where episodes start, and at which position of its episode each is.

Shapes: B sequences, T steps, C slots.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dhmm_rl.errors import InputError


class Steps(NamedTuple):
    """
    The steps of a pass; :func:`find_steps` makes them from tokens.

    :param tokens: token ids, -1 for padding, (B, T, C)
    :param valid: steps that are not padding, (B, T)
    :param starts: steps that do not depend on those before them, (B, T); ``None`` if there are none
    """

    tokens: Tensor
    valid: Tensor
    starts: Tensor | None

    def positions(self, first: Tensor) -> Tensor:
        """
        Number of steps since each step's episode started, (B, T); -1 for padding.

        :param first: position of the first step, if its episode started earlier, (B,)
        """
        steps = torch.arange(self.valid.shape[1], device=self.valid.device)
        if self.starts is None:
            return first[:, None] + steps
        if self.valid.shape[1] == 1:  # the same, in fewer operations
            return torch.where(self.starts, self.valid.long() - 1, first[:, None])
        started_at = torch.where(self.starts, steps + (~self.valid).long(), 0).cummax(dim=1).values
        continues = self.starts.cumsum(dim=1) == 0
        return steps - started_at + torch.where(continues, first[:, None], 0)


def can_inspect(x: Tensor) -> bool:
    """
    Return whether Python may look at the values of a tensor at no cost: on a GPU it would wait for all earlier work, and
    compiled code cannot do it.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def find_steps(tokens: Tensor, vocab_size: int, reset_id: int | None, padded: bool | None = None) -> Steps:
    """
    Find the steps that are padding, and those that do not depend on the steps before them.

    :param tokens: token ids, (B, T, C)
    :param vocab_size: number of ids of the model
    :param reset_id: id that opens an episode; ``None`` if no id does
    :param padded: whether some steps may be padding. By default all ids are inspected, and checked
    :raises InputError: for an id that the model does not have
    """
    valid = (tokens >= 0).any(dim=-1)
    starts = None if reset_id is None else tokens[:, :, 0] == reset_id
    if padded is None:
        lowest, highest = torch.stack(tokens.aminmax()).tolist() if tokens.numel() else (0, 0)
        if highest >= vocab_size:
            raise InputError(f"id {highest} is out of range: ids lie between 0 and {vocab_size - 1}, and -1 is padding")
        padded = lowest < 0 and not bool(valid.all())
    if padded:  # padding stands alone, and the step after it starts from nothing
        apart = ~valid | F.pad(~valid[:, :-1], (1, 0))
        starts = apart if starts is None else starts | apart
    return Steps(tokens, valid, starts)
