"""
DHMM-GPT2: a GPT-2 whose input also carries the belief of a hidden Markov layer, and whose logits carry its predictions.

Shapes: B sequences, T steps, C slots, V ids, D width, N chains, K latent states, M transition matrices, W window,
n the ids of the widest slot. A model with one slot takes and returns arrays without the slot dimension.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.errors import InputError
from dhmm_rl.model.attention import Block, attention_mask, init_weights, rotary_at, rotary_axes, rotary_table, within_reach
from dhmm_rl.model.config import DHMMConfig, constructor_signature
from dhmm_rl.model.embedding import STD, TokenEmbedding, init_head, position_features
from dhmm_rl.model.latent_layer import LatentChain, at_least_single
from dhmm_rl.model.outputs import ModelOutput, ModelState, Tables
from dhmm_rl.model.slot_decoder import CHUNK, SlotHeads, group_slots, slot_table, sum_before
from dhmm_rl.tokens import PAD_ID, RESET, Tokenizer


class DHMMGPT2(nn.Module):
    """
    A causal language model over steps of one or more tokens.

    For flat sequences of ids, give the sizes and call ``model(ids, labels=labels)``. For token streams of an environment,
    use :meth:`from_tokenizer`.

    The keywords are the fields of :class:`~dhmm_rl.model.config.DHMMConfig`, which describes each of them; ``vocab_size``,
    ``embed_size``, ``layers``, ``heads``, ``ff_hidden``, ``num_states`` and ``max_len`` may also be given by position, in this
    order. A single :class:`~dhmm_rl.model.config.DHMMConfig` does as well: ``DHMMGPT2(config)``.

    :raises InputError: for an argument of the wrong kind or out of its range, and for sizes that do not fit together
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__()
        self.config = config = DHMMConfig.from_arguments(*args, **settings)
        assert config.slots is not None
        self.slots = config.slots
        self.vocab_size, self.embed_size, self.heads = config.vocab_size, config.embed_size, config.heads
        self.positions, self.max_len, self.window = config.positions, config.max_len, config.window or config.max_len
        self.reach = None if config.reach is None else tuple(config.reach)
        self.action_slots, self.reset_id, self.mutation = config.action_slots, config.reset_id, config.mutation
        self.belief_size = config.chains * config.num_states

        self.slot_ids: Tensor
        self.register_buffer("slot_ids", slot_table(self.slots), persistent=False)
        self.last_ids: Tensor
        self.register_buffer("last_ids", self.slot_ids.amax(dim=1), persistent=False)
        self.slot_groups = group_slots(self.slots)

        width, layers = config.embed_size, config.layers
        self.chain: LatentChain | None = None
        if config.num_states > 0:
            self.chain = LatentChain(config)
            if layers == 0 and config.chains == 1:
                # A plain HMM: were its log-probabilities scaled, faint beliefs would do for sure answers.
                self.chain.residual_scale.requires_grad_(False)
            self.read_belief = nn.Linear(self.belief_size, width, bias=False)
            nn.init.normal_(self.read_belief.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.ff_hidden or 4 * width) for _ in range(layers))
        if layers > 0:
            self.embedding = TokenEmbedding(config.vocab_size, width, self.slots)
            # Not tied to the input as GPT-2's is: pretraining on actions that are not imitated would tilt the policy.
            self.head = nn.Parameter(torch.empty(config.vocab_size, width))
            init_head(self.head, self.slots, config.action_slots)
            if config.positions != "rotary":
                self.position_embedding = nn.Embedding(config.max_len, width)
                self.position_embedding.weight.data = position_features(config.max_len, width) * STD
            self.ln_f = nn.LayerNorm(width)
            init_weights(self.blocks)
            if len(self.slots) > 1:
                self.slot_mlp = nn.Sequential(
                    nn.LayerNorm(width),
                    nn.Linear(width, width),
                    nn.GELU(),
                    nn.Linear(width, width),
                )

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, **settings: Any) -> Self:
        """A model of the streams that a tokenizer makes; further keywords as in the constructor."""
        return cls(
            tokenizer.vocab_size,
            slots=tokenizer.slots,
            action_slots=tokenizer.action_slots,
            reset_id=RESET,
            **settings,
        )

    # Parallel pass

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> ModelOutput:
        """
        Predict what follows every step.

        :param input_ids: (B, T), or (B, T, C) with several slots; -1 is nothing
        :param labels: the ids that follow, ``labels[:, t]`` after ``input_ids[:, : t + 1]``, shaped like ``input_ids``; -1 and
            -100 are ignored. With several slots, slot j is predicted given the labels of the slots before it; without
            labels, as though they were unknown
        :param weights: of every label in the loss, broadcastable to the labels, e.g. one per field (C,)
        :param position_ids: (B, T), for learned positions; counted from the episode's start when ``None``. With ``reach``
            (B, T, P), and needed
        :raises InputError: for a sequence longer than ``max_len`` with learned positions; without ids where they are needed
        """
        following = self._following(input_ids, labels)
        tables = self.tables()
        mutation = self.mutation if self.training else 0.0
        hidden, belief = self.encode(input_ids, position_ids=position_ids, mutation=mutation, tables=tables)
        return self._output(hidden, belief, following, tables, labels, weights)

    def tables(self) -> Tables:
        """The parameters as passes use them: computed once for a pass, or for all the steps of a rollout."""
        chain = None if self.chain is None else self.chain.tables()
        parts = [self.embedding()] if self.blocks else []
        if chain is not None:
            parts.append(chain.evidence.flatten(1))
            if chain.gates is not None:
                parts.append(chain.gates.flatten(1))
        return Tables(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], chain)

    def encode(
        self,
        input_ids: Tensor,
        *,
        belief: Tensor | None = None,
        position: Tensor | None = None,
        position_ids: Tensor | None = None,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
        last: int | None = None,
        tables: Tables | None = None,
        state: ModelState | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Read steps.

        :param input_ids: (B, T) or (B, T, C)
        :param belief: before the first of these steps, (B, N, K); the model's own start when ``None``
        :param position: of the first of these steps in its episode, (B,); 0 when ``None``. For learned positions
        :param mutation: probability per step that the belief jumps to a random state
        :param generator: draws the jumps; torch's own when ``None``
        :param last: return only so many of the last steps; all when ``None``
        :param tables: from :meth:`tables`, where they serve more than this pass
        :param state: a fresh state that is to remember these steps; see :meth:`read`
        :return: hidden (B, T, D) and belief (B, T, N, K), T being ``last`` where that is given
        """
        tokens = self._slotted(input_ids)
        batch, steps, _ = tokens.shape
        last = steps if last is None else last
        tables = self.tables() if tables is None else tables
        valid, starts = self._starts(tokens)
        x, log_likelihood, gates = self._look_up(tokens, tables)
        initial = self._initial_belief(batch) if belief is None else belief
        beliefs = self._filter(tokens, log_likelihood, gates, initial, valid, starts, tables, mutation, generator)
        if not self.blocks:
            return self._believed(beliefs[:, -last:]), beliefs[:, -last:]
        if self.chain is not None:
            x = x + self._believed(beliefs)
        episode = None if starts is None else starts.cumsum(dim=1)
        if self.positions != "rotary":
            x = x + self._position_embedding(self._positions(tokens, position) if position_ids is None else position_ids)
        table = mask = None
        if episode is not None or self.window < steps or self.reach is not None:
            mask = attention_mask(valid, episode, self.window)
        if self.reach is not None:
            places = self._places(position_ids)
            table = rotary_axes(places, self.embed_size // self.heads, self.reach)
            assert mask is not None
            mask = mask & within_reach(places, places, self.reach)
        elif self.positions != "learned":
            table = rotary_table(torch.arange(steps, device=x.device), self.embed_size // self.heads)
        if state is not None:
            here = valid if episode is None else valid & (episode == episode[:, -1:])
            kept = torch.arange(max(steps - self.window, 0), steps, device=x.device)
            state.held[:, kept % self.window] = here[:, kept]
        for i, block in enumerate(self.blocks):
            cache = None if state is None else (state.keys[i], state.values[i])
            x = block(x, mask, table, last if block is self.blocks[-1] else steps, cache)
        return self.ln_f(x), beliefs[:, -last:]

    def decode(
        self,
        hidden: Tensor,
        belief: Tensor,
        following: Tensor,
        first: int = 0,
        last: int | None = None,
        tables: Tables | None = None,
        width: int | None = None,
    ) -> Tensor:
        """
        Logits of the next step's slots ``first`` to ``last - 1``, each given the slots of that step before it.

        :param hidden: (B, T, D)
        :param belief: (B, T, N, K)
        :param following: ids of the next step, -1 where unknown, (B, T, C); those from slot ``last - 1`` on may be left out
        :param tables: from :meth:`tables`, where they serve more than this pass
        :param width: how many ids of each slot, where these slots have fewer than n
        :return: (B, T, last - first, n), or ``width`` in place of n
        """
        last = len(self.slots) if last is None else last
        tables = self.tables() if tables is None else tables
        x, priors = self._read_slots(hidden, belief, following, first, last, tables)
        heads = self._slot_heads(range(first, last), self.slot_ids.shape[1] if width is None else width, tables)
        return self._slot_logits(x, priors, heads).permute(1, 2, 0, 3)

    def token_losses(
        self, hidden: Tensor, belief: Tensor, following: Tensor, first: int = 0, tables: Tables | None = None
    ) -> Tensor:
        """
        Cross-entropy in nats of the next step's slots from ``first`` on, each given the slots of that step before it.

        :param hidden: (B, T, D)
        :param belief: (B, T, N, K)
        :param following: ids of the next step, negative where there is none to predict, (B, T, C)
        :return: (B, T, C - first), 0 where there is nothing to predict
        """
        tables = self.tables() if tables is None else tables
        targets = torch.where(following < 0, -100, following - self.slot_ids[:, 0])[..., first:]
        groups = [([j for j in slots if j >= first], width) for slots, width in self.slot_groups]
        heads = [self._slot_heads(slots, width, tables) for slots, width in groups if slots]
        grouped = [j - first for slots, _ in groups for j in slots]
        order = None if grouped == sorted(grouped) else torch.tensor(grouped, device=hidden.device)
        numbers = sum(head.ids.numel() for head in heads) + len(grouped) * self.embed_size
        rows = max(1, CHUNK // max(following.shape[1] * numbers, 1))
        parts = zip(*(torch.split(whole, rows) for whole in (hidden, belief, following, targets)), strict=True)
        return torch.cat([self._chunk_losses(*chunk, heads=heads, order=order, first=first, tables=tables) for chunk in parts])

    def _chunk_losses(
        self,
        hidden: Tensor,
        belief: Tensor,
        following: Tensor,
        targets: Tensor,
        *,
        heads: Sequence[SlotHeads],
        order: Tensor | None,
        first: int,
        tables: Tables,
    ) -> Tensor:
        """Losses of some sequences; ``order``: the slots from ``first`` on as the heads have them, where that is another."""
        x, priors = self._read_slots(hidden, belief, following, first, len(self.slots), tables)
        wanted = targets.permute(2, 0, 1)
        if order is not None:
            x, priors = (part if part is None else part[order] for part in (x, priors))
            wanted = wanted[order]
        sizes = [len(head.ids) for head in heads]
        xs, all_priors = ([None] * len(sizes) if part is None else torch.split(part, sizes) for part in (x, priors))
        losses = []
        for x, priors, head, ids in zip(xs, all_priors, heads, torch.split(wanted, sizes), strict=True):
            logits = at_least_single(self._slot_logits(x, priors, head))
            nll = F.cross_entropy(logits.flatten(0, 2), ids.flatten(), ignore_index=-100, reduction="none")
            losses.append(nll.view_as(ids))
        joined = losses[0] if len(losses) == 1 else torch.cat(losses)
        if order is not None:
            joined = joined[order.argsort()]
        return joined.permute(1, 2, 0)

    def _read_slots(
        self, hidden: Tensor, belief: Tensor, following: Tensor, first: int, last: int, tables: Tables
    ) -> tuple[Tensor | None, Tensor | None]:
        """What slots ``first`` to ``last - 1`` are predicted from, (last - first, B, T, D) and (last - first, B, T, N, K)."""
        if last == 1:  # nothing stands before it
            embedded = seen = gates = None
        else:
            known = following[..., :last].permute(2, 0, 1)
            found = F.embedding(torch.where(known < 0, self.vocab_size, known), tables.lookup, self.vocab_size)
            alone = last == first + 1
            before = found[:-1].sum(dim=0, keepdim=True) if alone else sum_before(found)[first:]
            embedded, seen, gates = self._split(before)
        x = priors = None
        if self.blocks:
            x = hidden[None] if embedded is None else hidden[None] + embedded
            if len(self.slots) > 1:
                x = x + self.slot_mlp(x)
        if self.chain is not None:
            assert tables.chain is not None
            with torch.autocast(hidden.device.type, enabled=False):
                priors = self.chain.slot_priors(at_least_single(belief), seen, gates, first, last, tables.chain)
        return x, priors

    def _slot_heads(self, slots: Sequence[int], width: int, tables: Tables) -> SlotHeads:
        """What the logits of some slots are made of; ``width``: of the widest of them."""
        here = slice(slots.start, slots.stop) if isinstance(slots, range) else slots
        ids = self.slot_ids[here, :width]
        padded = any(self.slots[j].stop - self.slots[j].start < width for j in slots)
        head = F.embedding(ids.clamp_min(0), self.head) if self.blocks else None
        emissions = None if tables.chain is None else tables.chain.log_emissions[here][..., :width].exp()
        return SlotHeads(padded, ids, head, emissions)

    def _slot_logits(self, x: Tensor | None, priors: Tensor | None, heads: SlotHeads) -> Tensor:
        """Logits (c, B, T, n) of slots, from what :meth:`_read_slots` made of them."""
        logits = torch.zeros((), device=heads.ids.device)
        if x is not None:
            logits = torch.einsum("cbtd,cnd->cbtn", x, heads.head)
        if priors is not None:
            assert self.chain is not None
            assert heads.emissions is not None
            with torch.autocast(heads.ids.device.type, enabled=False):
                logits = logits + self.chain.slot_logits(priors, heads.emissions)
        return logits.masked_fill((heads.ids < 0)[:, None, None], -torch.inf) if heads.padded else logits

    # One step at a time

    @torch.no_grad()
    def initial_state(self, batch: int) -> ModelState:
        """The state of B streams before their first step."""
        device = self.slot_ids.device
        size = self.embed_size // self.heads
        cache = torch.zeros(len(self.blocks), batch, self.heads, self.window, size, device=device)
        held = torch.zeros(batch, self.window, dtype=torch.bool, device=device)
        position = torch.zeros(batch, dtype=torch.long, device=device)
        places = torch.zeros(batch, self.window, len(self.reach or ()), dtype=torch.long, device=device)
        return ModelState(cache, cache.clone(), self._initial_belief(batch), held, position, places, self.tables())

    @torch.no_grad()
    def read(
        self, input_ids: Tensor, belief: Tensor | None = None, position: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """
        The state after some steps, read in parallel: what :meth:`step` after :meth:`step` would come to.

        :param input_ids: (B, T) or (B, T, C); steps of -1 hold nothing
        :param belief: before the first of them, (B, N, K); the model's own start when ``None``
        :param position: of the first of them in its episode, (B,); 0 when ``None``
        :return: beliefs after each step, (B, T, N, K), and the state
        """
        tokens = self._slotted(input_ids)
        batch, steps, _ = tokens.shape
        state = self.initial_state(batch)
        if steps == 0:
            state = replace(state, belief=state.belief if belief is None else belief)
            state = replace(state, position=state.position if position is None else position)
            return state.belief[:, None][:, :0], state
        _, beliefs = self.encode(input_ids, belief=belief, position=position, tables=state.tables, state=state)
        position = self.position_after(tokens, position)
        return beliefs, replace(state, belief=beliefs[:, -1], position=position, time=steps)

    @torch.no_grad()
    def believe(self, input_ids: Tensor, belief: Tensor) -> Tensor:
        """Beliefs after each step, (B, T, N, K), from ``belief`` (B, N, K) before the first, without the transformer."""
        tokens, tables = self._slotted(input_ids), self.tables()
        valid, starts = self._starts(tokens)
        _, log_likelihood, gates = self._look_up(tokens, tables)
        return self._filter(tokens, log_likelihood, gates, belief, valid, starts, tables, mutation=0.0)

    def step(self, tokens: Tensor, state: ModelState, labels: Tensor | None = None) -> tuple[ModelOutput, ModelState]:
        """
        Read one step of every stream; same outputs as the parallel pass over all steps so far, at constant cost.

        :param tokens: (B,), or (B, C) with several slots
        :param labels: the step that follows, as in :meth:`forward`
        :return: outputs with T = 1, and the new state (``state`` itself must not be used again)
        :raises InputError: past ``max_len`` with learned positions
        """
        labels = None if labels is None else labels[:, None]
        following = self._following(tokens[:, None], labels)
        hidden, belief, state = self.encode_step(tokens, state)
        return self._output(hidden, belief, following, state.tables, labels, None), state

    @torch.no_grad()
    def encode_step(
        self,
        tokens: Tensor,
        state: ModelState,
        mutation: float = 0.0,
        position_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, ModelState]:
        """
        Like :meth:`step` without the decoding: hidden (B, 1, D), belief (B, 1, N, K) and the new state.

        :param mutation: probability that the belief jumps to a random state
        :param position_ids: (B,), for learned positions; counted from the episode's start when ``None``. With ``reach``
            (B, P), and needed
        :param generator: draws the jumps; torch's own when ``None``
        """
        slotted = self._slotted(tokens[:, None])
        valid, starts = self._starts(slotted)
        x, log_likelihood, gates = self._look_up(slotted, state.tables)
        belief = self._filter(slotted, log_likelihood, gates, state.belief, valid, starts, state.tables, mutation, generator)
        position = state.position
        if starts is not None:
            position = torch.where(starts[:, 0], torch.where(valid[:, 0], 0, -1), position)
            state.held.logical_and_(~starts)
        state.held[:, state.time % self.window] = valid[:, 0]
        if self.blocks:
            hidden = self._step_blocks(x, belief, position, position_ids, state)
        else:
            hidden = self._believed(belief)
        return hidden, belief, replace(state, belief=belief[:, 0], position=position + 1, time=state.time + 1)

    def _step_blocks(
        self, x: Tensor, belief: Tensor, position: Tensor, position_ids: Tensor | None, state: ModelState
    ) -> Tensor:
        if self.chain is not None:
            x = x + self._believed(belief)
        if self.positions != "rotary":
            x = x + self._position_embedding((position if position_ids is None else position_ids)[:, None])
        at = state.time % self.window
        visible = state.held.clone()
        visible[:, at] = True
        visible = visible[:, None, None]
        table = None
        if self.reach is not None:
            places = self._places(position_ids)[:, None]
            table = rotary_axes(places, self.embed_size // self.heads, self.reach)
            state.places[:, at] = places[:, 0]
            visible = visible & within_reach(places, state.places, self.reach)
        elif self.positions != "learned":
            table = rotary_at(state.time, self.embed_size // self.heads, x.device)
        for block, keys, values in zip(self.blocks, state.keys, state.values, strict=True):
            assert isinstance(block, Block)
            x = block.step(x, keys, values, at, visible, table)
        normed: Tensor = self.ln_f(x)
        return normed

    # Pieces

    def _slotted(self, ids: Tensor) -> Tensor:
        if ids.dtype != torch.long:
            if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise InputError(f"ids are of type {ids.dtype}; they must be whole numbers, such as torch.long")
            ids = ids.long()
        if len(self.slots) == 1 and ids.dim() == 2:
            return ids[..., None]
        if ids.dim() != 3 or ids.shape[-1] != len(self.slots):
            raise InputError(
                f"ids have shape {tuple(ids.shape)}; a model of {len(self.slots)} slots reads (B, T, {len(self.slots)})"
            )
        return ids

    def _starts(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """
        Which steps hold something, and which have nothing to do with those before them, each (B, T).

        :raises InputError: for an id that the model does not have
        """
        valid = (tokens >= 0).any(dim=-1)
        starts = None if self.reset_id is None else tokens[:, :, 0] == self.reset_id
        lowest, highest = torch.stack(tokens.aminmax()).tolist() if tokens.numel() else (0, 0)
        if highest >= self.vocab_size:
            raise InputError(f"id {highest} is out of range: ids lie between 0 and {self.vocab_size - 1}, and -1 is nothing")
        if lowest < 0 and not bool(valid.all()):  # nothing stands alone, and what follows it begins anew
            apart = ~valid | F.pad(~valid[:, :-1], (1, 0))
            starts = apart if starts is None else starts | apart
        return valid, starts

    def _following(self, input_ids: Tensor, labels: Tensor | None) -> Tensor:
        """
        The steps that follow, (B, T, C): the labels, or nothing.

        :raises InputError: for labels of another shape or type, or one that is not an id of its slot
        """
        if labels is None:
            return torch.full_like(self._slotted(input_ids), PAD_ID)
        if labels.shape != input_ids.shape:
            raise InputError(f"labels have shape {tuple(labels.shape)}, ids {tuple(input_ids.shape)}; the shapes must be equal")
        following = self._slotted(labels)
        wrong = (following >= 0) & ((following < self.slot_ids[:, 0]) | (following > self.last_ids))
        if bool(wrong.any()):
            row, step, j = wrong.nonzero()[0].tolist()
            slot = self.slots[j]
            raise InputError(
                f"the label {int(following[row, step, j])} of slot {slot.name} at step {step} of sequence {row} is not one of "
                f"its ids, {slot.start} to {slot.stop - 1}; -1 and -100 are ignored"
            )
        return following

    def _check_half_precision(self, losses: Tensor) -> None:
        """
        Advise against training in float16.

        :param losses: of every token, (B, T, C)
        :raises InputError: for a loss that is not finite
        """
        overflowed = ~losses.isfinite()
        if bool(overflowed.any()):
            row, step, j = overflowed.nonzero()[0].tolist()
            raise InputError(
                f"the loss of slot {self.slots[j].name} at step {step} of sequence {row} is {losses[row, step, j].item()} in "
                "float16, which overflows beyond 65504; use torch.bfloat16 or torch.float32"
            )
        if losses.requires_grad:
            warnings.warn(
                "float16 is too narrow for this model's gradients without loss scaling; torch.bfloat16 needs none", stacklevel=3
            )

    def _believed(self, belief: Tensor) -> Tensor:
        """What beliefs (B, T, N, K) add to the transformer's input, (B, T, D)."""
        added: Tensor = self.read_belief(belief.flatten(2).to(self.read_belief.weight.dtype))
        return added

    def _squeeze(self, logits: Tensor) -> Tensor:
        return logits[:, :, 0] if len(self.slots) == 1 else logits

    def _initial_belief(self, batch: int) -> Tensor:
        if self.chain is None:
            return torch.zeros(batch, 0, 0, device=self.slot_ids.device)
        return self.chain.start.expand(batch, -1, -1)

    def _look_up(self, tokens: Tensor, tables: Tables) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sums over a step's slots: embedding (B, T, D), log-likelihood (B, T, N, K), gate logits (B, T, N, M)."""
        batch, steps, slots = tokens.shape
        ids = torch.where(tokens < 0, self.vocab_size, tokens)
        if slots == 1:
            found = F.embedding(ids[..., 0], tables.lookup, padding_idx=self.vocab_size)
        else:
            bags = F.embedding_bag(ids.flatten(0, 1), tables.lookup, mode="sum", padding_idx=self.vocab_size)
            found = bags.view(batch, steps, tables.lookup.shape[1])
        return self._split(found)

    def _split(self, found: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sums of rows of the table, (..., D + N · K + N · M), into embedding, log-likelihood and gate logits."""
        width, lead = (self.embed_size if self.blocks else 0), found.shape[:-1]
        if self.chain is None:
            return found, found.new_zeros(*lead, 0, 0), None
        shape, matrices = self.chain.shape, self.chain.matrices
        x, log_likelihood, gates = torch.split(
            found, [width, self.belief_size, found.shape[-1] - width - self.belief_size], dim=-1
        )
        return (
            x.to(self.head.dtype) if self.blocks else x,
            log_likelihood.reshape(*lead, *shape),
            gates.reshape(*lead, shape[0], matrices) if matrices > 1 else None,
        )

    def _filter(
        self,
        tokens: Tensor,
        log_likelihood: Tensor,
        gates: Tensor | None,
        initial: Tensor,
        valid: Tensor,
        starts: Tensor | None,
        tables: Tables,
        mutation: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if self.chain is None:
            return log_likelihood
        assert tables.chain is not None
        with torch.autocast(log_likelihood.device.type, enabled=False):
            ids = tokens[..., 0] if len(self.slots) == 1 else None
            belief: Tensor = self.chain(log_likelihood, gates, initial, starts, tables.chain, mutation, ids, generator)
            return torch.where(valid[..., None, None], belief, self.chain.start)  # nothing says nothing

    def position_after(self, input_ids: Tensor, first: Tensor | None) -> Tensor:
        """Steps since the episode began, (B,), for the step that follows some; ``first`` is for the first of them."""
        tokens = self._slotted(input_ids)
        if tokens.shape[1] == 0:
            return tokens.new_zeros(len(tokens)) if first is None else first
        return self._positions(tokens, first)[:, -1] + 1

    def _positions(self, tokens: Tensor, first: Tensor | None) -> Tensor:
        """
        Steps since each step's episode began, or since there was nothing (which is at -1), (B, T).

        :param first: that of the first step, (B,)
        """
        at = torch.arange(tokens.shape[1], device=tokens.device)
        began = torch.where((tokens < 0).all(dim=-1), at + 1, 0)
        if self.reset_id is not None:
            began = torch.where(tokens[:, :, 0] == self.reset_id, at, began)
        began = began.cummax(dim=1).values
        if first is not None:
            goes_on = began == 0 if self.reset_id is None else (began == 0) & (tokens[:, :1, 0] != self.reset_id)
            at = at + torch.where(goes_on, first[:, None], 0)
        return at - began

    def _places(self, position_ids: Tensor | None) -> Tensor:
        assert self.reach is not None
        axes = len(self.reach)
        if position_ids is None or position_ids.dim() < 2 or position_ids.shape[-1] != axes:
            found = "none are" if position_ids is None else f"they have the shape {tuple(position_ids.shape)}"
            raise InputError(f"reach {list(self.reach)} is for position ids (…, {axes}) given with the tokens; {found}")
        return position_ids

    def _position_embedding(self, positions: Tensor) -> Tensor:
        if positions.numel() and int(positions.max()) >= self.max_len:
            raise InputError(
                f"position {int(positions.max())} is past max_len {self.max_len}; learned positions end there, rotary do not"
            )
        embedded: Tensor = self.position_embedding(positions.clamp_min(0))
        return embedded

    def _output(
        self, hidden: Tensor, belief: Tensor, following: Tensor, tables: Tables, labels: Tensor | None, weights: Tensor | None
    ) -> ModelOutput:
        """Outputs of a pass, with losses where there are labels; logits when they are asked for, with gradient if now is."""
        recorded = torch.is_grad_enabled()

        def logits() -> Tensor:
            with torch.set_grad_enabled(recorded):
                return self._squeeze(self.decode(hidden, belief, following, tables=tables))

        out = ModelOutput(hidden, belief.flatten(2), logits)
        if labels is not None:
            nll = self.token_losses(hidden, belief, following, tables=tables)
            labeled = following >= 0
            if _in_half_precision(hidden):
                self._check_half_precision(nll)
            if weights is not None and labels.dim() == 2 and weights.dim() > 0:
                weights = weights[..., None]  # one slot
            weight = labeled.float() if weights is None else labeled * weights.to(nll.dtype)
            out.loss = (nll * weight).sum() / weight.sum().clamp_min(1e-9)
            out.token_loss = nll.detach().view_as(labels)
            out.bits = nll.detach().sum(dim=(0, 1)) / labeled.sum(dim=(0, 1)) / math.log(2)
        return out


def _in_half_precision(hidden: Tensor) -> bool:
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or hidden.dtype == torch.float16


DHMMGPT2.__init__.__signature__ = constructor_signature()  # type: ignore[attr-defined]
