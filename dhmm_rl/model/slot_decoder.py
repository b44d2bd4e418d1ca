"""
The slot decoder: predicts the slots of the next step one after the other.

Shapes: B sequences, T steps, C slots, c of these slots, D width, S shape of the latent layer's belief, n the ids of the widest
slot.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.inputs import check_half_precision, check_labels, in_half_precision, to_slots
from dhmm_rl.model.latent_layer import at_least_single
from dhmm_rl.model.outputs import CachedParameters, HiddenStates, ModelOutput
from dhmm_rl.model.slots import group_slots, slot_table, sum_before
from dhmm_rl.tokens import PAD_ID

CHUNK = 2**21
"""Number of values of a step's slots that are computed at once: larger arrays leave the processor's cache."""
GPU_CHUNK = 2**28
"""The same on a GPU, where it limits the memory."""


class SlotHeads(NamedTuple):
    """
    What the logits of c slots are computed with.

    :param padded: whether some of these slots have fewer than n ids
    :param ids: ids of the slots, -1 beyond them, (c, n)
    :param head: output embeddings of these ids, (c, n, D); ``None`` without a transformer
    :param emissions: emissions of these slots in the latent layer, (c, …); ``None`` if it predicts nothing
    """

    padded: bool
    ids: Tensor
    head: Tensor | None
    emissions: Tensor | None


class SlotDecoder(nn.Module):
    """
    Predicts slot j of the next step from the hidden state plus the embeddings of that step's slots before j, through a small
    residual network; the latent layer adds its own prediction. This keeps the chain rule over tokens exact.

    :param config: hyperparameters of the model
    """

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__()
        self.slots, self.vocab_size, width = config.slots, config.vocab_size, config.embed_size
        self.slot_ids: Tensor
        self.register_buffer("slot_ids", slot_table(self.slots), persistent=False)  # (C, n), -1 beyond a slot's ids
        self.last_ids: Tensor
        self.register_buffer("last_ids", self.slot_ids.amax(dim=1), persistent=False)
        self.slot_groups = group_slots(self.slots)
        self.all_slots: Tensor
        self.observed_slots: Tensor
        # The slots, group by group: all of them, and those of observations.
        for name, first in (("all_slots", 0), ("observed_slots", config.action_slots)):
            order = torch.tensor([j for slots, _ in self.slot_groups for j in slots if j >= first], dtype=torch.long)
            self.register_buffer(name, order, persistent=False)
        self.mlp: nn.Module | None = None
        if config.layers > 0 and len(self.slots) > 1:
            self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def following(self, input_ids: Tensor, labels: Tensor | None, checked: bool = True) -> Tensor:
        """The steps to predict, (B, T, C): the labels, checked or not, or padding if there are none."""
        if labels is None:
            return torch.full_like(to_slots(input_ids, len(self.slots)), PAD_ID)
        if not checked:
            return to_slots(labels, len(self.slots))
        return check_labels(labels, input_ids.shape, self.slots, self.slot_ids[:, 0], self.last_ids)

    def forward(
        self, states: HiddenStates, following: Tensor, first: int = 0, last: int | None = None, width: int | None = None
    ) -> Tensor:
        """
        Logits of slots ``first`` to ``last - 1`` of the next step, each given the slots of that step before it.

        :param states: hidden states of T steps
        :param following: ids of the next step, -1 where unknown, (B, T, C); those from slot ``last - 1`` on may be left out
        :param first: the first slot to predict
        :param last: one past the last slot to predict; all slots by default
        :param width: number of ids n of the result, if these slots have fewer than the widest of all slots
        :return: (B, T, last - first, n)
        """
        last = len(self.slots) if last is None else last
        x, beliefs = self._inputs(states, following, first, last)
        heads = self._heads(range(first, last), self.slot_ids.shape[1] if width is None else width, states.parameters)
        return self._logits(x, beliefs, heads, states.parameters).permute(1, 2, 0, 3)

    def token_losses(self, states: HiddenStates, following: Tensor, first: int = 0) -> Tensor:
        """
        Cross-entropy in nats of the next step's slots from ``first`` on, each given the slots of that step before it.

        :param states: hidden states of T steps
        :param following: ids of the next step, negative where there is none to predict, (B, T, C)
        :param first: the first slot to predict
        :return: (B, T, C - first), 0 where there is nothing to predict
        """
        targets = torch.where(following < 0, -100, following - self.slot_ids[:, 0])[..., first:]
        # Slots of similar size are computed together.
        groups = [([j for j in slots if j >= first], width) for slots, width in self.slot_groups]
        groups = [(slots, width) for slots, width in groups if slots]
        grouped = [j for slots, _ in groups for j in slots]
        order = {0: self.all_slots, len(self.slots) - len(self.observed_slots): self.observed_slots}.get(first)
        if order is None:
            order = torch.tensor(grouped, dtype=torch.long, device=following.device)
        indices = torch.split(order, [len(slots) for slots, _ in groups])
        heads = [
            self._heads(slots, width, states.parameters, index) for (slots, width), index in zip(groups, indices, strict=True)
        ]
        order = None if grouped == sorted(grouped) else order - first
        # Sequences are computed in chunks, which stay in the processor's cache or in a GPU's memory.
        numbers = sum(head.ids.numel() for head in heads) + len(grouped) * states.hidden.shape[-1]
        limit = GPU_CHUNK if following.device.type == "cuda" else CHUNK
        rows = max(1, limit // max(following.shape[1] * numbers, 1))
        parts = zip(*(torch.split(whole, rows) for whole in (*states[:2], following, targets)), strict=True)
        return torch.cat(
            [
                self._chunk_losses(HiddenStates(hidden, belief, states.parameters), ids, wanted, heads, order, first)
                for hidden, belief, ids, wanted in parts
            ]
        )

    def _chunk_losses(
        self,
        states: HiddenStates,
        following: Tensor,
        targets: Tensor,
        heads: Sequence[SlotHeads],
        order: Tensor | None,
        first: int,
    ) -> Tensor:
        """Losses of some sequences; ``order``: the slots from ``first`` on in the order of the heads, if it is another one."""
        x, beliefs = self._inputs(states, following, first, len(self.slots))
        targets = targets.permute(2, 0, 1)
        if order is not None:
            x, beliefs = (part if part is None else part[order] for part in (x, beliefs))
            targets = targets[order]
        sizes = [len(head.ids) for head in heads]
        xs, all_beliefs = ([None] * len(sizes) if part is None else torch.split(part, sizes) for part in (x, beliefs))
        losses = []
        for x, beliefs, head, ids in zip(xs, all_beliefs, heads, torch.split(targets, sizes), strict=True):
            logits = at_least_single(self._logits(x, beliefs, head, states.parameters))
            nll = F.cross_entropy(logits.flatten(0, 2), ids.flatten(), ignore_index=-100, reduction="none")
            losses.append(nll.view_as(ids))
        joined = losses[0] if len(losses) == 1 else torch.cat(losses)
        if order is not None:
            joined = joined[order.argsort()]
        return joined.permute(1, 2, 0)

    def _inputs(self, states: HiddenStates, following: Tensor, first: int, last: int) -> tuple[Tensor | None, Tensor | None]:
        """What slots ``first`` to ``last - 1`` are predicted from: (c, B, T, D) and beliefs (c, B, T, *S)."""
        hidden, belief, parameters = states
        embedded = seen = None
        if last > 1:  # nothing is before the first slot
            # Sum what the slots before each slot contribute.
            known = following[..., :last].permute(2, 0, 1)
            rows = F.embedding(torch.where(known < 0, self.vocab_size, known), parameters.lookup, self.vocab_size)
            alone = last == first + 1
            before = rows[:-1].sum(dim=0, keepdim=True) if alone else sum_before(rows)[first:]
            embedded, seen = parameters.split(before)
        x = beliefs = None
        if parameters.head is not None:
            x = hidden[None] if embedded is None else hidden[None] + embedded
            if self.mlp is not None:
                x = x + self.mlp(x)
        if parameters.latent_layer is not None:
            with torch.autocast(hidden.device.type, enabled=False):
                beliefs = parameters.latent_layer.slot_beliefs(at_least_single(belief), seen, first, last, parameters.latent)
        return x, beliefs

    def _heads(
        self, slots: Sequence[int], width: int, parameters: CachedParameters, index: slice | Tensor | None = None
    ) -> SlotHeads:
        """What the logits of some slots are computed with."""
        # ``width``: number of ids of the widest slot; ``index``: the slots as a tensor, needed if they are not neighbors.
        if index is None or list(slots) == list(range(slots[0], slots[-1] + 1)):
            index = slice(slots[0], slots[-1] + 1)
        ids = self.slot_ids[index, :width]
        padded = any(self.slots[j].stop - self.slots[j].start < width for j in slots)
        head = None
        if parameters.head is not None and len(slots) == 1 and not padded:
            head = parameters.head[self.slots[slots[0]].start :][None, :width]
        elif parameters.head is not None:
            head = F.embedding(ids.clamp_min(0), parameters.head)
        layer = parameters.latent_layer
        return SlotHeads(padded, ids, head, None if layer is None else layer.slot_emissions(index, width, parameters.latent))

    def _logits(self, x: Tensor | None, beliefs: Tensor | None, heads: SlotHeads, parameters: CachedParameters) -> Tensor:
        """Logits (c, B, T, n) of slots, from their inputs."""
        logits = torch.zeros((), device=heads.ids.device)
        if x is not None:
            logits = torch.einsum("cbtd,cnd->cbtn", x, heads.head)
        if beliefs is not None:
            assert parameters.latent_layer is not None
            assert heads.emissions is not None
            with torch.autocast(heads.ids.device.type, enabled=False):
                logits = logits + parameters.latent_layer.slot_logits(beliefs, heads.emissions)
        return logits.masked_fill((heads.ids < 0)[:, None, None], -torch.inf) if heads.padded else logits


def make_output(
    decoder: SlotDecoder, states: HiddenStates, following: Tensor, labels: Tensor | None, weights: Tensor | None = None
) -> ModelOutput:
    """
    Outputs of a pass, with losses if there are labels. Logits are computed on demand, with gradients if they are enabled now.

    :param decoder: predicts the slots
    :param states: hidden states of the pass
    :param following: ids of the steps that follow, (B, T, C)
    :param labels: these ids as the user passed them; ``None`` if the steps that follow are unknown
    :param weights: weight of every label in the loss, broadcastable to the labels
    """
    recorded, one_slot = torch.is_grad_enabled(), len(decoder.slots) == 1

    def logits() -> Tensor:
        with torch.set_grad_enabled(recorded):
            decoded: Tensor = decoder(states, following)
            return decoded[:, :, 0] if one_slot else decoded

    out = ModelOutput(states.hidden, states.belief.flatten(2), logits)
    if labels is not None:
        nll = decoder.token_losses(states, following)
        labeled = following >= 0
        if in_half_precision(states.hidden):
            check_half_precision(nll, decoder.slots)
        if weights is not None and labels.dim() == 2 and weights.dim() > 0:
            weights = weights[..., None]  # one slot
        weight = labeled.float() if weights is None else labeled * weights.to(nll.dtype)
        out.loss = (nll * weight).sum() / weight.sum().clamp_min(1e-9)
        out.token_loss = nll.detach().view_as(labels)
        out.bits = nll.detach().sum(dim=(0, 1)) / labeled.sum(dim=(0, 1)) / math.log(2)
    return out
