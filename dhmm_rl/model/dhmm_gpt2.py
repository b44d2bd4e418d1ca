"""
DHMM-GPT2: a GPT-2 whose input also carries the belief of a latent layer, and whose logits carry that layer's predictions.

Shapes: B sequences, T steps, C slots, V ids, D width, S shape of the latent layer's belief, P axes of position ids, n the ids
of the widest slot. A model with one slot takes and returns arrays without the slot dimension.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from dhmm_rl.model.config import LATENT_LAYERS, DHMMConfig, constructor_signature, load_class
from dhmm_rl.model.embedding import TokenEmbedding, init_head
from dhmm_rl.model.hmm_layer import HMMLayer
from dhmm_rl.model.inputs import to_slots
from dhmm_rl.model.latent_layer import LatentLayer
from dhmm_rl.model.mixer import init_weights
from dhmm_rl.model.old_names import rename_old_parameters
from dhmm_rl.model.outputs import CachedParameters, HiddenStates, ModelOutput, ModelState
from dhmm_rl.model.positions import LearnedPositions
from dhmm_rl.model.slot_decoder import SlotDecoder, make_output
from dhmm_rl.model.steps import Steps, find_steps
from dhmm_rl.model.transformer import Transformer
from dhmm_rl.tokens import RESET, Tokenizer


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
        self.belief_shape: tuple[int, ...] = (0, 0)
        if config.num_states > 0:
            self.latent = load_class(LATENT_LAYERS, config.latent)(config)
            self.belief_shape = self.latent.belief_shape
            self.read_belief = nn.Linear(math.prod(self.belief_shape), config.embed_size, bias=False)
            nn.init.normal_(self.read_belief.weight, std=0.1)
        self.position_embedding: LearnedPositions | None = None
        self.blocks = Transformer(config)
        if config.layers > 0:
            self.embedding = TokenEmbedding(config.vocab_size, config.embed_size, self.slots)
            # Not tied to the input embedding as in GPT-2: pretraining on actions that are not imitated would bias the policy.
            self.head = nn.Parameter(torch.empty(config.vocab_size, config.embed_size))
            init_head(self.head, self.slots, config.action_slots)
            if config.positions != "rotary":
                self.position_embedding = LearnedPositions(config.max_len, config.embed_size)
            self.ln_f = nn.LayerNorm(config.embed_size)
            init_weights(self.blocks)
        self.slot_decoder = SlotDecoder(config)
        self.register_load_state_dict_pre_hook(rename_old_parameters)  # type: ignore[no-untyped-call]

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, **settings: Any) -> Self:
        """Make a model of the streams of a tokenizer; further keywords are those of the constructor."""
        sizes: dict[str, Any] = {"slots": tokenizer.slots, "action_slots": tokenizer.action_slots, "reset_id": RESET}
        return cls(tokenizer.vocab_size, **sizes, **settings)

    @property
    def hmm(self) -> HMMLayer | None:
        """The latent layer if it is a hidden Markov layer."""
        return self.latent if isinstance(self.latent, HMMLayer) else None

    @property
    def slot_ids(self) -> Tensor:
        """The ids of every slot, -1 beyond them, (C, n)."""
        return self.slot_decoder.slot_ids

    # Passes

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        position_ids: Tensor | None = None,
        padded: bool | None = None,
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
        :param padded: whether some steps may be padding. By default the model inspects and checks all ids, which on a GPU waits
            for all earlier work. Ids are not checked if this is given
        :raises InputError: for a sequence longer than ``max_len`` with learned positions, and for missing position ids
        """
        following = self.slot_decoder.following(input_ids, labels, checked=padded is None)
        mutation = self.mutation if self.training else 0.0
        states = self.hidden_states(input_ids, position_ids=position_ids, mutation=mutation, padded=padded)
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
        padded: bool | None = None,
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
        :param padded: whether some steps may be padding, as in :meth:`forward`
        :return: hidden (B, T, D) and belief (B, T, *S), with T = ``last`` if it is given
        """
        tokens = to_slots(input_ids, len(self.slots))
        state = ModelState.create(self.cached_parameters(), len(tokens), belief, position)
        return self._read(tokens, state, position_ids, mutation, generator, last, padded)[0]

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
    def initial_state(self, batch: int, belief: Tensor | None = None, position: Tensor | None = None) -> ModelState:
        """
        The state of B streams before their first step.

        :param batch: number of streams B
        :param belief: belief to begin with, (B, *S); that of a new episode by default
        :param position: position of the first step in its episode, (B,); 0 by default
        """
        cache = self.blocks.new_cache(batch, self.slot_ids.device)
        return ModelState.create(self.cached_parameters(), batch, belief, position, cache)

    @torch.no_grad()
    def prefill(
        self, input_ids: Tensor, belief: Tensor | None = None, position: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """
        Read some steps in parallel, with the same state afterwards as if :meth:`step` had read one after the other.

        :param input_ids: token ids, (B, T) or (B, T, C); -1 is padding
        :param belief: belief before the first of them, as in :meth:`initial_state`
        :param position: position of the first of them, as in :meth:`initial_state`
        :return: beliefs after each step, (B, T, *S), and the state
        """
        tokens = to_slots(input_ids, len(self.slots))
        state = self.initial_state(len(tokens), belief, position)
        if tokens.shape[1] == 0:
            return state.belief[:, None][:, :0], state
        states, state = self._read(tokens, state)
        return states.belief, state

    @torch.no_grad()
    def advance(self, input_ids: Tensor, belief: Tensor | None = None, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        :meth:`prefill` without the transformer and its cache.

        :return: beliefs after each step, (B, T, *S), and the position of the step that follows, (B,)
        """
        tokens = to_slots(input_ids, len(self.slots))
        steps = find_steps(tokens, self.vocab_size, self.reset_id)
        state = ModelState.create(self.cached_parameters(), len(tokens), belief, position)
        _, beliefs = self._embed(steps, state)
        following = steps.positions(state.position)[:, -1] + 1 if tokens.shape[1] > 0 else state.position
        return beliefs, following

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
        following = self.slot_decoder.following(tokens[:, None], labels)
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
        padded: bool | None = None,
    ) -> tuple[HiddenStates, ModelState]:
        """
        :meth:`step` without the decoding, with the further arguments of :meth:`hidden_states`.

        :param position_ids: position ids as in :meth:`forward`, but of one step, (B,) or (B, P)
        :return: hidden states with T = 1, and the new state
        """
        position_ids = None if position_ids is None else position_ids[:, None]
        steps = to_slots(tokens[:, None], len(self.slots))
        return self._read(steps, state, position_ids, mutation, generator, padded=padded)

    # The one pass behind all of these

    def _read(
        self,
        tokens: Tensor,
        state: ModelState,
        position_ids: Tensor | None = None,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
        last: int | None = None,
        padded: bool | None = None,
    ) -> tuple[HiddenStates, ModelState]:
        """Read T steps (B, T, C) that follow a state; with a cache, they are one step or the first ones of its streams."""
        parameters, cache = state.parameters, state.cache
        # Find the steps that are padding, and those that do not depend on the steps before them.
        steps = find_steps(tokens, self.vocab_size, self.reset_id, padded)
        # Embed the tokens of each step, and update the belief with every step.
        x, beliefs = self._embed(steps, state, mutation, generator)
        # Positions in the episode are needed by learned positions, and by the steps that follow.
        positions = None
        if cache is not None or (position_ids is None and self.position_embedding is not None):
            positions = steps.positions(state.position)
        # Run the transformer on the embeddings plus a projection of the belief.
        if self.blocks:
            if self.latent is not None:
                x = x + self._project_belief(beliefs)
            if self.position_embedding is not None:
                x = x + self.position_embedding(positions if position_ids is None else position_ids)
            hidden = self.ln_f(self.blocks(x, steps.valid, steps.starts, position_ids, cache, last))
        else:
            hidden = self._project_belief(beliefs if last is None else beliefs[:, -last:])
        # Remember what the next steps need.
        if cache is not None:
            assert positions is not None
            cache.time += tokens.shape[1]
            state = ModelState(beliefs[:, -1], positions[:, -1] + 1, cache, parameters)
        return HiddenStates(hidden, beliefs if last is None else beliefs[:, -last:], parameters), state

    def _embed(
        self, steps: Steps, state: ModelState, mutation: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of steps that follow a state, (B, T, D), and the beliefs after them, (B, T, *S)."""
        x, features = state.parameters.look_up(steps.tokens)
        if self.latent is None:
            return x, x.new_zeros(*x.shape[:2], 0, 0)
        return x, self.latent(steps, features, state.belief, state.parameters.latent, mutation, generator)

    def _project_belief(self, beliefs: Tensor) -> Tensor:
        projected: Tensor = self.read_belief(beliefs.flatten(2).to(self.read_belief.weight.dtype))
        return projected


DHMMGPT2.__init__.__signature__ = constructor_signature()  # type: ignore[attr-defined]
