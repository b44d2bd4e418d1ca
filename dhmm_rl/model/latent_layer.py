"""
The seam of the latent layer: memory of unlimited length that complements attention.

A new latent layer is one file with a subclass of :class:`LatentLayer` and one line in
:data:`dhmm_rl.model.config.LATENT_LAYERS`.

Shapes: B sequences, T steps, C slots, c of these slots, V ids, F features, S shape of a belief, n the ids of the widest slot.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.steps import Steps


@dataclass
class LatentParameters:
    """
    What a latent layer computes from its parameters once for a whole pass, or for all steps of a rollout.

    :param initial: belief before the first step of an episode, (*S)
    :param token_features: contribution of each id to the features of a step, (V + 1, F); the last row, for padding, is zero
    """

    initial: Tensor
    token_features: Tensor


class LatentLayer(nn.Module):
    """
    A recurrent layer with a belief: what it knows of the past after each step.

    :param config: hyperparameters of the model
    """

    belief_shape: tuple[int, ...]
    """Shape S of a belief."""

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__()

    def cached_parameters(self) -> LatentParameters:
        """The parameters as passes use them."""
        raise NotImplementedError

    def filter(
        self,
        features: Tensor,
        initial: Tensor,
        starts: Tensor | None,
        parameters: Any,
        *,
        ids: Tensor | None = None,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """
        Beliefs after each step. One step at a time is the same as in parallel: T = 1.

        :param features: sums of the token features of each step, (B, T, F)
        :param initial: belief before the first step, (B, *S)
        :param starts: steps before which the belief is reset to that of a new episode, (B, T); ``None`` if there are none
        :param parameters: result of :meth:`cached_parameters`
        :param ids: tokens of the steps if there is one slot, -1 for padding, (B, T)
        :param mutation: probability per step that the belief jumps to a random state, in layers that have such
        :param generator: random generator of the jumps; torch's global one by default
        :return: (B, T, *S); what stands at padding is ignored
        """
        raise NotImplementedError

    def forward(
        self,
        steps: Steps,
        features: Tensor,
        belief: Tensor,
        parameters: LatentParameters,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """
        Beliefs after each step, (B, T, *S): :meth:`filter` outside autocast; at padding, the belief of a new episode.

        :param steps: steps of the pass
        :param belief: belief before the first step, (B, *S)

        The other arguments are those of :meth:`filter`.
        """
        ids = steps.tokens[..., 0] if steps.tokens.shape[-1] == 1 else None
        with torch.autocast(features.device.type, enabled=False):
            beliefs = self.filter(features, belief, steps.starts, parameters, ids=ids, mutation=mutation, generator=generator)
            axes = (None,) * len(self.belief_shape)
            return torch.where(steps.valid[(..., *axes)], beliefs, parameters.initial)

    def slot_beliefs(self, belief: Tensor, seen: Tensor | None, first: int, last: int, parameters: Any) -> Tensor | None:
        """
        Beliefs from which the layer itself predicts slots ``first`` to ``last - 1`` of the next step.

        :param belief: belief after each step, (B, T, *S)
        :param seen: sums of the token features of the slots before each of these, (c, B, T, F), or (1, B, T, F) if they are the
            same; ``None`` if nothing is before them
        :param first: the first of the slots
        :param last: one past the last of the slots
        :param parameters: result of :meth:`cached_parameters`
        :return: (c, B, T, *S); ``None`` if the layer predicts nothing by itself
        """
        return None

    def slot_emissions(self, slots: slice | Tensor, width: int, parameters: Any) -> Tensor | None:
        """What :meth:`slot_logits` needs to know of c slots of at most ``width`` ids, (c, …)."""
        return None

    def slot_logits(self, slot_beliefs: Tensor, emissions: Tensor) -> Tensor:
        """
        What the layer adds to the logits of some slots.

        :param slot_beliefs: result of :meth:`slot_beliefs`, (c, B, T, *S)
        :param emissions: result of :meth:`slot_emissions`, (c, …)
        :return: (c, B, T, n)
        """
        raise NotImplementedError


def at_least_single(x: Tensor) -> Tensor:
    """Numbers in single or double precision: half precision is not enough for a filter or for logarithms."""
    return x if x.dtype == torch.float64 else x.float()
