"""
What a model returns, what it remembers between steps, and its parameters as passes use them.

Shapes: B sequences, T steps, C slots, V ids, D width, F features and S shape of the latent layer's belief, n the ids of the
widest slot.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dhmm_rl.model.cache import Cache
from dhmm_rl.model.latent_layer import LatentLayer, LatentParameters
from dhmm_rl.model.steps import can_inspect


class CachedParameters(NamedTuple):
    """
    The parameters as passes use them: computed once for a pass, or for all steps of a rollout.

    :param lookup: contribution of each id to a step, summed over its slots: its embedding, then its features for the latent
        layer, (V + 1, D + F); the last row is padding
    :param head: output embeddings of the transformer, (V, D); ``None`` without one
    :param latent_layer: the latent layer; ``None`` without one
    :param latent: the latent layer's own cached parameters
    """

    lookup: Tensor
    head: Tensor | None
    latent_layer: LatentLayer | None
    latent: LatentParameters | None

    def look_up(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the tokens (B, T, C) of each step contribute, summed: embeddings (B, T, D) and latent features (B, T, F)."""
        batch, steps, slots = tokens.shape
        padding = len(self.lookup) - 1
        ids = torch.where(tokens < 0, padding, tokens)
        if slots == 1:
            rows = F.embedding(ids[..., 0], self.lookup, padding_idx=padding)
        elif not can_inspect(ids):  # on a GPU, and in compiled code
            rows = F.embedding(ids, self.lookup, padding_idx=padding).sum(dim=2)
        else:
            bags = F.embedding_bag(ids.flatten(0, 1), self.lookup, mode="sum", padding_idx=padding)
            rows = bags.view(batch, steps, self.lookup.shape[1])
        return self.split(rows)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of rows of the lookup table, (..., D + F), as embeddings (..., D) and latent features (..., F)."""
        if self.latent is None:
            return rows, rows[..., :0]
        features = self.latent.token_features.shape[1]
        embedded, latent = torch.split(rows, [rows.shape[-1] - features, features], dim=-1)
        return (embedded if self.head is None else embedded.to(self.head.dtype)), latent


class HiddenStates(NamedTuple):
    """
    What a model knows after each step; :meth:`DHMMGPT2.decode` makes predictions of it.

    :param hidden: output of the transformer, (B, T, D)
    :param belief: belief of the latent layer, (B, T, *S)
    :param parameters: parameters that computed them
    """

    hidden: Tensor
    belief: Tensor
    parameters: CachedParameters


@dataclass
class ModelOutput:
    """
    Result of a forward pass; read it as ``out["loss"]`` or ``out.loss``.

    :param hidden: output of the transformer, (B, T, D)
    :param belief: filtered beliefs, flattened, (B, T, N · K)
    :param decode: function that computes :attr:`logits`
    :param loss: weighted mean of the cross-entropy in nats per token; ``None`` without labels
    :param token_loss: cross-entropy of each token in nats, unweighted, 0 where there is no label; shaped like the labels
    :param bits: mean cross-entropy per field in bits, (C,); NaN for a field without labels
    """

    hidden: Tensor
    belief: Tensor
    decode: Callable[[], Tensor] = field(repr=False)
    loss: Tensor | None = None
    token_loss: Tensor | None = None
    bits: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        """
        Logits of what follows each step: (B, T, V) with one slot; otherwise (B, T, C, n), slot j's ids in the order of
        ``model.slots[j]`` and minus infinity beyond them. They are computed when first used, which training never does: use
        them before the model's parameters change.
        """
        return self.decode()

    def __getitem__(self, name: str) -> Tensor | None:
        value: Tensor | None = getattr(self, name)
        return value


@dataclass
class ModelState:
    """
    What a model remembers of B streams between steps. :meth:`DHMMGPT2.step` writes into it: use the state that it returns.

    :param belief: belief of the latent layer, (B, *S)
    :param position: steps since each stream's episode started, (B,)
    :param cache: memory of the blocks; ``None`` in a parallel pass that nothing follows
    :param parameters: the model's parameters as its steps use them; a state is useless once they have changed
    """

    belief: Tensor
    position: Tensor
    cache: Cache | None
    parameters: CachedParameters = field(repr=False)

    @classmethod
    def create(
        cls,
        parameters: CachedParameters,
        batch: int,
        belief: Tensor | None = None,
        position: Tensor | None = None,
        cache: Cache | None = None,
    ) -> "ModelState":
        """The state of B streams: before their first step, or with a given belief or position."""
        device = parameters.lookup.device
        if belief is None:
            initial = torch.zeros(0, 0, device=device) if parameters.latent is None else parameters.latent.initial
            belief = initial.expand(batch, *initial.shape)
        if position is None:
            position = torch.zeros(batch, dtype=torch.long, device=device)
        return cls(belief, position, cache, parameters)

    def __getitem__(self, streams: Any) -> "ModelState":
        """A copy of the state of some streams, independent of further steps of the others; ``state[:]`` copies all."""
        index = torch.arange(len(self.belief), device=self.belief.device)[streams]
        cache = None if self.cache is None else self.cache.select(index)
        return ModelState(self.belief[index], self.position[index], cache, self.parameters)
