"""
What a model gives, what it remembers between steps, and its parameters as passes use them.

Shapes: B sequences, T steps, C slots, V ids, D width, L layers, H heads, N chains, K latent states, M matrices, W window,
n the ids of the widest slot.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dhmm_rl.model.latent_layer import ChainTables


@dataclass
class ModelOutput:
    """
    What a forward pass gives; read it as ``out["loss"]`` or ``out.loss``.

    :param hidden: the transformer's output, (B, T, D)
    :param belief: filtered beliefs, (B, T, N · K)
    :param decode: computes :attr:`logits`
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
        Of what follows each step: (B, T, V) with one slot; otherwise (B, T, C, n), slot j's ids in the order of
        ``model.slots[j]`` and minus infinity beyond them. Computed when first asked for, which training never does: ask before
        the model's parameters change.
        """
        return self.decode()

    def __getitem__(self, name: str) -> Tensor | None:
        value: Tensor | None = getattr(self, name)
        return value


@dataclass
class ModelState:
    """
    What a model remembers of B streams between steps. :meth:`DHMMGPT2.step` writes into it: use the state it returns.

    :param keys: ring of rotated keys per layer, (L, B, H, W, D / H)
    :param values: ring of values per layer, the same shape
    :param belief: (B, N, K)
    :param held: which places of the rings hold a step of the present episode, (B, W)
    :param position: steps since each stream's episode began, (B,)
    :param places: the position ids of the rings' steps, (B, W, P), in a model with a ``reach``
    :param tables: the model's parameters as its steps use them; a state is worth nothing once they have changed
    :param time: steps taken by all streams together
    """

    keys: Tensor
    values: Tensor
    belief: Tensor
    held: Tensor
    position: Tensor
    places: Tensor
    tables: "Tables" = field(repr=False)
    time: int = 0

    def __getitem__(self, streams: Any) -> "ModelState":
        """A copy of some streams' state, which further steps of the others leave alone; ``state[:]`` copies all."""
        index = torch.arange(len(self.belief), device=self.belief.device)[streams]
        return ModelState(
            self.keys[:, index],
            self.values[:, index],
            self.belief[index],
            self.held[index],
            self.position[index],
            self.places[index],
            self.tables,
            self.time,
        )


class Tables(NamedTuple):
    """
    Parameters as passes use them.

    :param lookup: what every id contributes to a step, summed over its slots: embedding, log-likelihood, gate logits,
        (V + 1, D + N · K + N · M); the last row is nothing
    :param chain: the latent layer's
    """

    lookup: Tensor
    chain: ChainTables | None
