"""
DHMM-GPT2: a GPT-2 whose input also carries the belief of a latent layer, and whose logits carry that layer's predictions.

Shapes: B sequences, T steps, C slots, V ids, D width, F features and S shape of the latent layer's belief, W window, P axes of
position ids, n the ids of the widest slot. A model with one slot takes and returns arrays without the slot dimension.
"""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.errors import InputError
from dhmm_rl.model.cache import Cache
from dhmm_rl.model.config import LATENT_LAYERS, DHMMConfig, constructor_signature, load_class
from dhmm_rl.model.embedding import STD, TokenEmbedding, init_head
from dhmm_rl.model.hmm_layer import HMMLayer
from dhmm_rl.model.inputs import check_labels, find_starts, to_slots
from dhmm_rl.model.latent_layer import LatentLayer
from dhmm_rl.model.mixer import init_weights
from dhmm_rl.model.outputs import CachedParameters, HiddenStates, ModelOutput, ModelState
from dhmm_rl.model.positions import learned_positions, positions_in_episode
from dhmm_rl.model.slot_decoder import SlotDecoder, make_output
from dhmm_rl.model.transformer import Transformer
from dhmm_rl.tokens import PAD_ID, RESET, Tokenizer

OLD_NAMES = {"chain.": "latent.", "slot_mlp.": "slot_decoder.mlp."}
"""Prefixes of parameters in checkpoints of earlier versions, and their present names."""


class DHMMGPT2(nn.Module):
    """
    A causal language model over steps of one or more tokens.

    For flat sequences of ids, pass the sizes and call ``model(ids, labels=labels)``. For token streams of an environment,
    use :meth:`from_tokenizer`.

    The keywords are the fields of :class:`~dhmm_rl.model.config.DHMMConfig`, which describes each of them. ``vocab_size``,
    ``embed_size``, ``layers``, ``heads``, ``ff_hidden``, ``num_states`` and ``max_len`` may also be given by position, in this
    order. ``DHMMGPT2(config)`` builds the model of a :class:`~dhmm_rl.model.config.DHMMConfig`.

    :raises InputError: for a value of the wrong type or out of its range, and for values that do not fit together
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__()
        self.config = config = DHMMConfig.from_arguments(*args, **settings)
        self.slots, self.action_slots, self.reset_id = config.slots, config.action_slots, config.reset_id
        self.vocab_size, self.embed_size, self.max_len = config.vocab_size, config.embed_size, config.max_len
        self.mutation, self.reach = config.mutation, None if config.reach is None else tuple(config.reach)
        self.latent: LatentLayer | None = None
        if config.num_states > 0:
            self.latent = load_class(LATENT_LAYERS, config.latent)(config)
            self.read_belief = nn.Linear(self.belief_size, config.embed_size, bias=False)
            nn.init.normal_(self.read_belief.weight, std=0.1)
        self.blocks = Transformer(config)
        if config.layers > 0:
            self.embedding = TokenEmbedding(config.vocab_size, config.embed_size, self.slots)
            # Not tied to the input embedding as in GPT-2: pretraining on actions that are not imitated would bias the policy.
            self.head = nn.Parameter(torch.empty(config.vocab_size, config.embed_size))
            init_head(self.head, self.slots, config.action_slots)
            if config.positions != "rotary":
                self.position_embedding = nn.Embedding(config.max_len, config.embed_size)
                self.position_embedding.weight.data = learned_positions(config.max_len, config.embed_size) * STD
            self.ln_f = nn.LayerNorm(config.embed_size)
            init_weights(self.blocks)
        self.slot_decoder = SlotDecoder(config)

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, **settings: Any) -> Self:
        """Make a model of the streams of a tokenizer; further keywords are those of the constructor."""
        return cls(
            tokenizer.vocab_size,
            slots=tokenizer.slots,
            action_slots=tokenizer.action_slots,
            reset_id=RESET,
            **settings,
        )

    @property
    def belief_shape(self) -> tuple[int, ...]:
        """Shape S of the latent layer's belief."""
        return (0, 0) if self.latent is None else self.latent.belief_shape

    @property
    def belief_size(self) -> int:
        """Number of values of a belief."""
        return math.prod(self.belief_shape)

    @property
    def hmm(self) -> HMMLayer | None:
        """The latent layer if it is a hidden Markov layer."""
        return self.latent if isinstance(self.latent, HMMLayer) else None

    @property
    def slot_ids(self) -> Tensor:
        """The ids of every slot, -1 beyond them, (C, n)."""
        return self.slot_decoder.slot_ids

    @property
    def window(self) -> int:
        """Number of steps, including the present one, that a block sees."""
        return self.blocks.window

    @window.setter
    def window(self, steps: int) -> None:
        self.blocks.set_window(steps)

    # Passes

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

        :param input_ids: token ids, (B, T), or (B, T, C) with several slots; -1 is padding
        :param labels: the ids that follow, ``labels[:, t]`` after ``input_ids[:, : t + 1]``, shaped like ``input_ids``; -1 and
            -100 are ignored. With several slots, slot j is predicted given the labels of the slots before it; without
            labels, as if they were unknown
        :param weights: weight of every label in the loss, broadcastable to the labels, e.g. one per field (C,)
        :param position_ids: positions for learned positions, (B, T); counted from the start of the episode by default. A model
            with a ``reach`` requires them, (B, T, P)
        :raises InputError: for a sequence longer than ``max_len`` with learned positions, and for missing position ids
        """
        following = self._following(input_ids, labels)
        mutation = self.mutation if self.training else 0.0
        states = self.hidden_states(input_ids, position_ids=position_ids, mutation=mutation)
        return make_output(self.slot_decoder, states, following, labels, weights)

    def cached_parameters(self) -> CachedParameters:
        """The parameters as passes use them; :class:`HiddenStates` and :class:`ModelState` carry them."""
        latent = None if self.latent is None else self.latent.cached_parameters()
        parts = [self.embedding()] if self.blocks else []
        if latent is not None:
            parts.append(latent.token_features)
        head = self.head if self.blocks else None
        return CachedParameters(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], head, self.latent, latent)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        belief: Tensor | None = None,
        position: Tensor | None = None,
        position_ids: Tensor | None = None,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
        last: int | None = None,
    ) -> HiddenStates:
        """
        Read T steps in parallel.

        :param input_ids: token ids, (B, T) or (B, T, C)
        :param belief: belief before the first of these steps, (B, *S); that of a new episode by default
        :param position: position of the first of these steps in its episode, (B,); 0 by default. For learned positions
        :param position_ids: position ids, as in :meth:`forward`
        :param mutation: probability per step that the belief jumps to a random state
        :param generator: random generator of the jumps; torch's global one by default
        :param last: number of steps to return, the last ones; all by default
        :return: hidden (B, T, D) and belief (B, T, *S), with T = ``last`` if it is given
        """
        tokens = to_slots(input_ids, len(self.slots))
        state = self._new_state(len(tokens), belief, position, None)
        return self._read(tokens, state, position_ids, mutation, generator, last)[0]

    def decode(
        self, states: HiddenStates, following: Tensor, first: int = 0, last: int | None = None, width: int | None = None
    ) -> Tensor:
        """Logits of slots of the next step, (B, T, last - first, n); see :meth:`SlotDecoder.forward`."""
        logits: Tensor = self.slot_decoder(states, following, first, last, width)
        return logits

    def token_losses(self, states: HiddenStates, following: Tensor, first: int = 0) -> Tensor:
        """Cross-entropy of slots of the next step, (B, T, C - first); see :meth:`SlotDecoder.token_losses`."""
        return self.slot_decoder.token_losses(states, following, first)

    # One step at a time

    @torch.no_grad()
    def initial_state(self, batch: int) -> ModelState:
        """The state of B streams before their first step."""
        return self._new_state(batch, None, None, self.blocks.new_cache(batch, self.slot_ids.device))

    @torch.no_grad()
    def prefill(
        self, input_ids: Tensor, belief: Tensor | None = None, position: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """
        The state after some steps, read in parallel: the same as after calling :meth:`step` for each of them.

        :param input_ids: token ids, (B, T) or (B, T, C); -1 is padding
        :param belief: belief before the first of them, (B, *S); that of a new episode by default
        :param position: position of the first of them in its episode, (B,); 0 by default
        :return: beliefs after each step, (B, T, *S), and the state
        """
        tokens = to_slots(input_ids, len(self.slots))
        state = self._new_state(len(tokens), belief, position, self.blocks.new_cache(len(tokens), self.slot_ids.device))
        if tokens.shape[1] == 0:
            return state.belief[:, None][:, :0], state
        states, state = self._read(tokens, state)
        return states.belief, state

    def step(self, tokens: Tensor, state: ModelState, labels: Tensor | None = None) -> tuple[ModelOutput, ModelState]:
        """
        Read one step of every stream, with the same outputs as the parallel pass over all steps so far, at constant cost.

        :param tokens: token ids, (B,), or (B, C) with several slots
        :param state: state of these streams; it must not be used again
        :param labels: the step that follows, as in :meth:`forward`
        :return: outputs with T = 1, and the new state
        :raises InputError: beyond ``max_len`` with learned positions
        """
        labels = None if labels is None else labels[:, None]
        following = self._following(tokens[:, None], labels)
        states, state = self.step_hidden_states(tokens, state)
        return make_output(self.slot_decoder, states, following, labels), state

    @torch.no_grad()
    def step_hidden_states(
        self,
        tokens: Tensor,
        state: ModelState,
        mutation: float = 0.0,
        position_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[HiddenStates, ModelState]:
        """
        :meth:`step` without the decoding.

        :param tokens: token ids, (B,), or (B, C) with several slots
        :param state: state of these streams; it must not be used again
        :param mutation: probability that the belief jumps to a random state
        :param position_ids: positions for learned positions, (B,); counted from the start of the episode by default. A model
            with a ``reach`` requires them, (B, P)
        :param generator: random generator of the jumps; torch's global one by default
        :return: hidden states with T = 1, and the new state
        """
        position_ids = None if position_ids is None else position_ids[:, None]
        return self._read(to_slots(tokens[:, None], len(self.slots)), state, position_ids, mutation, generator)

    @torch.no_grad()
    def filter_beliefs(self, input_ids: Tensor, belief: Tensor) -> Tensor:
        """Beliefs after each step, (B, T, *S), from ``belief`` (B, *S) before the first, without the transformer."""
        tokens, parameters = to_slots(input_ids, len(self.slots)), self.cached_parameters()
        valid, starts = find_starts(tokens, self.vocab_size, self.reset_id)
        _, features = self._look_up(tokens, parameters)
        return self._filter(tokens, features, belief, valid, starts, parameters)

    @torch.no_grad()
    def position_after(self, input_ids: Tensor, first: Tensor | None) -> Tensor:
        """Position in its episode of the step after some steps, (B,); ``first``: position of the first of them."""
        tokens = to_slots(input_ids, len(self.slots))
        first = tokens.new_zeros(len(tokens)) if first is None else first
        if tokens.shape[1] == 0:
            return first
        return positions_in_episode(*find_starts(tokens, self.vocab_size, self.reset_id), first)[:, -1] + 1

    # The one pass behind all of these

    def _read(
        self,
        tokens: Tensor,
        state: ModelState,
        position_ids: Tensor | None = None,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
        last: int | None = None,
    ) -> tuple[HiddenStates, ModelState]:
        """Read T steps (B, T, C) that follow a state; with a cache, they are one step or the first ones of its streams."""
        parameters, cache = state.parameters, state.cache
        # Find the steps that are padding, and those that do not depend on the steps before them.
        valid, starts = find_starts(tokens, self.vocab_size, self.reset_id)
        # Sum what the tokens of each step contribute: embeddings (B, T, D) and features for the latent layer (B, T, F).
        x, features = self._look_up(tokens, parameters)
        # Update the belief with every step.
        beliefs = self._filter(tokens, features, state.belief, valid, starts, parameters, mutation, generator)
        # Positions in the episode are needed by learned positions, and by the steps that follow.
        positions = None
        learned = self.blocks and self.config.positions != "rotary"
        if cache is not None or (learned and position_ids is None):
            positions = positions_in_episode(valid, starts, state.position)
        # Run the transformer on the embeddings plus a projection of the belief.
        if self.blocks:
            if self.latent is not None:
                x = x + self._project_belief(beliefs)
            if learned:
                x = x + self._position_embedding(positions if position_ids is None else position_ids)
            hidden = self.ln_f(self.blocks(x, valid, starts, position_ids, cache, last))
        else:
            hidden = self._project_belief(beliefs if last is None else beliefs[:, -last:])
        # Remember what the next steps need.
        if cache is not None:
            assert positions is not None
            cache.time += tokens.shape[1]
            state = ModelState(beliefs[:, -1], positions[:, -1] + 1, cache, parameters)
        return HiddenStates(hidden, beliefs if last is None else beliefs[:, -last:], parameters), state

    def _look_up(self, tokens: Tensor, parameters: CachedParameters) -> tuple[Tensor, Tensor]:
        """Sums over a step's slots: embeddings (B, T, D) and latent features (B, T, F)."""
        batch, steps, slots = tokens.shape
        ids = torch.where(tokens < 0, self.vocab_size, tokens)
        if slots == 1:
            rows = F.embedding(ids[..., 0], parameters.lookup, padding_idx=self.vocab_size)
        else:
            bags = F.embedding_bag(ids.flatten(0, 1), parameters.lookup, mode="sum", padding_idx=self.vocab_size)
            rows = bags.view(batch, steps, parameters.lookup.shape[1])
        return parameters.split(rows)

    def _filter(
        self,
        tokens: Tensor,
        features: Tensor,
        belief: Tensor,
        valid: Tensor,
        starts: Tensor | None,
        parameters: CachedParameters,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Beliefs after each step, (B, T, *S); at padding, the belief of a new episode."""
        if self.latent is None or parameters.latent is None:
            return features.new_zeros(*features.shape[:2], 0, 0)
        ids = tokens[..., 0] if len(self.slots) == 1 else None
        with torch.autocast(features.device.type, enabled=False):
            beliefs = self.latent.filter(
                features, belief, starts, parameters.latent, ids=ids, mutation=mutation, generator=generator
            )
            axes = (None,) * len(self.latent.belief_shape)
            return torch.where(valid[(..., *axes)], beliefs, parameters.latent.initial)

    def _project_belief(self, beliefs: Tensor) -> Tensor:
        projected: Tensor = self.read_belief(beliefs.flatten(2).to(self.read_belief.weight.dtype))
        return projected

    # Pieces

    def _new_state(self, batch: int, belief: Tensor | None, position: Tensor | None, cache: Cache | None) -> ModelState:
        parameters, device = self.cached_parameters(), self.slot_ids.device
        if belief is None:
            initial = torch.zeros(0, 0, device=device) if parameters.latent is None else parameters.latent.initial
            belief = initial.expand(batch, *initial.shape)
        position = torch.zeros(batch, dtype=torch.long, device=device) if position is None else position
        return ModelState(belief, position, cache, parameters)

    def _following(self, input_ids: Tensor, labels: Tensor | None) -> Tensor:
        """The steps that follow, (B, T, C): the labels, or padding."""
        if labels is None:
            return torch.full_like(to_slots(input_ids, len(self.slots)), PAD_ID)
        return check_labels(labels, input_ids.shape, self.slots, self.slot_ids[:, 0], self.slot_decoder.last_ids)

    def _position_embedding(self, positions: Tensor | None) -> Tensor:
        assert positions is not None
        if positions.numel() and int(positions.max()) >= self.max_len:
            raise InputError(
                f"position {int(positions.max())} is past max_len {self.max_len}; learned positions end there, rotary do not"
            )
        embedded: Tensor = self.position_embedding(positions.clamp_min(0))
        return embedded

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a state dict; parameters of earlier versions get their present names."""
        for name in list(state_dict):
            for old, new in OLD_NAMES.items():
                if name.startswith(prefix + old):
                    state_dict[prefix + new + name.removeprefix(prefix + old)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


DHMMGPT2.__init__.__signature__ = constructor_signature()  # type: ignore[attr-defined]
