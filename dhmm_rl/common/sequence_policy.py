"""
DHMM-GPT2 as a policy that acts on its cached state and is trained on whole segments.

Shapes: N environments, C slots, B segments of T steps behind P steps of burn-in, F = D + N · K features.
"""

import copy
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from dhmm_rl.common.buffers import SegmentSamples
from dhmm_rl.common.distributions import ActionTokens, check_masks
from dhmm_rl.common.policies import DHMMPolicy, as_ids
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, ModelState, Tables
from dhmm_rl.tokens import RESET

DEFAULT_WINDOW = 16

FORGOTTEN = (
    "predict was called in the middle of an episode without the state it returned before, so the policy has forgotten the "
    "episode; call: action, state = model.predict(observation, state, episode_start)"
)


class Acted(NamedTuple):
    """
    :param actions: for the environments
    :param unclipped: the same before values of a Gaussian head were clipped to the action space
    :param stored: the same as the policy evaluates them: ids, or values under a Gaussian head, (N, A)
    :param values: (N,)
    :param log_prob: (N,)
    :param state: for the next step
    """

    actions: NDArray[Any]
    unclipped: NDArray[Any]
    stored: Tensor
    values: Tensor
    log_prob: Tensor
    state: ModelState


class SequencePolicy(DHMMPolicy):
    """
    :class:`DHMMPolicy` with memory: reads one step at a time and keeps what attention and belief need in a state.

    :param features_extractor_kwargs: keywords of :class:`DHMMGPT2`; the window is 16 steps where they do not say
    :param keep_prior: keep the pretrained policy beside the one being trained; see :class:`SequencePPO`
    """

    def __init__(
        self,
        *args: Any,
        features_extractor_kwargs: dict[str, Any] | None = None,
        keep_prior: bool = False,
        **kwargs: Any,
    ) -> None:
        self.keep_prior = keep_prior
        kwargs["features_extractor_kwargs"] = {"window": DEFAULT_WINDOW} | (features_extractor_kwargs or {})
        super().__init__(*args, **kwargs)

    @property
    def burn_in(self) -> int:
        """How many earlier steps the output of a step depends on through attention: layers · (window - 1)."""
        return len(self.language_model.blocks) * (self.language_model.window - 1)

    @property
    def action_choices(self) -> list[int]:
        """How many choices each action field has; a mask has a flag for each."""
        return self._action_tokens().choices

    def load_language_model(self, pretrained: DHMMGPT2) -> None:
        """Start from a pretrained model, which is kept as the prior if this policy keeps one."""
        super().load_language_model(pretrained)
        if self.prior is not None:
            self.prior.load_state_dict(pretrained.state_dict())

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.prior: DHMMGPT2 | None = None
        if self.keep_prior:
            if self.action_head != "tokens":
                raise InputError("a pretrained policy chooses action tokens; it is no prior for action_head = 'gaussian'")
            self.prior = copy.deepcopy(self.language_model).requires_grad_(False)

    # Acting

    @torch.no_grad()
    def act(
        self, tokens: Tensor, state: ModelState, masks: NDArray[np.bool_] | None = None, deterministic: bool = False
    ) -> Acted:
        """
        Read the present step of every environment and choose actions.

        :param tokens: (N, C)
        :param state: of these N streams; must not be used again
        :param masks: legal choices, (N, all choices)
        :raises InputError: when weights are NaN or infinite, and for masks that allow nothing or have another shape
        """
        features, state = self.read_step(tokens, state)
        legal = None if masks is None else check_masks(masks, self._action_tokens().choices, len(tokens), self.device)
        distribution = self.distribution(features, legal, state.tables)
        if isinstance(distribution, ActionTokens):
            stored, log_prob = distribution.draw(deterministic)
            actions = unclipped = distribution.tokenizer.decode_action(stored.cpu().numpy())
        else:
            stored = distribution.get_actions(deterministic)
            log_prob = distribution.log_prob(stored)
            space = self.action_space
            unclipped = stored.cpu().numpy().reshape(-1, *space.shape)  # type: ignore[misc]
            actions = np.clip(unclipped, space.low, space.high)  # type: ignore[attr-defined]
        return Acted(actions, unclipped, stored, self.values(features), log_prob, state)

    def read_step(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Features (N, F) of one step of every stream (N, C), and the new state."""
        hidden, belief, state = self.language_model.encode_step(tokens, state)
        return self.features(hidden[:, 0], belief[:, 0]), state

    def values(self, features: Tensor) -> Tensor:
        """The critic: (..., F) to (...)."""
        value: Tensor = self.value_net(self.mlp_extractor.forward_critic(features))
        return value[..., 0]

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """
        Actions for the present observations of a token stream.

        Where an episode begins is written in the stream, so ``episode_start`` may be left out.

        :param observation: (N, H, C), or (H, C) of a single environment
        :param state: what the last call returned; ``None`` at the beginning, or with a history that reaches back to it
        :param deterministic: take the likeliest action; else draw one
        :param action_masks: legal choices, (N, all choices)
        :return: actions (N, ...) and the state for the next call
        :raises InputError: for an observation that is not a token stream's, and a state of other environments
        """
        self.set_training_mode(False)
        window, shape = np.asarray(observation), (self.observation_space.shape or ())
        single = window.ndim == 2
        if window.shape[-2:] != shape:
            raise InputError(
                f"the policy reads token streams, of shape {shape} each, but was given {window.shape}; "
                "wrap the environment in VecTokenStream or TokenStream with the tokenizer model.observation_space.tokenizer"
            )
        tokens = as_ids(torch.as_tensor(window[None] if single else window, device=self.device))
        if state is None:
            if ((tokens[:, 0, 0] != RESET) & (tokens[:, 0] >= 0).any(dim=-1)).any():
                warnings.warn(FORGOTTEN, stacklevel=3)
            _, memory = self.language_model.read(tokens[:, :-1])
        elif len(state.belief) != len(tokens):
            raise InputError(f"the state is of {len(state.belief)} environments, the observations are of {len(tokens)}")
        else:
            memory = state[:]
        acted = self.act(tokens[:, -1], memory, action_masks, deterministic)
        return (acted.actions[0] if single else acted.actions), acted.state

    # Training

    def read_segments(self, samples: SegmentSamples, tables: Tables | None = None) -> tuple[Tensor, Tensor]:
        """
        The parallel pass: hidden outputs (B, T, D) and beliefs (B, T, N, K) of the steps after the burn-in.

        The state in which they were read while acting is rebuilt from the burn-in, so outputs are the same.
        """
        steps = samples.tokens.shape[1] - self.burn_in
        return self.language_model.encode(
            samples.tokens, belief=samples.belief, position=samples.position, last=steps, tables=tables
        )

    def evaluate_segments(self, samples: SegmentSamples) -> tuple[Tensor, Tensor, Distribution, Tensor, Tensor]:
        """
        :return: values (B · T,), log-probabilities of the actions (B · T,), the action distribution, and hidden outputs
            and beliefs of :meth:`read_segments`
        """
        tables = self.language_model.tables()
        hidden, belief = self.read_segments(samples, tables)
        features = self.features(hidden, belief).flatten(0, 1)
        distribution = self.distribution(features, samples.masks, tables)
        if isinstance(distribution, ActionTokens):
            log_prob = distribution.log_prob_of_ids(samples.actions.long())
        else:
            log_prob = distribution.log_prob(samples.actions)
        return self.values(features), log_prob, distribution, hidden, belief

    def critic_parameters(self) -> list[nn.Parameter]:
        """What only the critic uses."""
        return [*self.mlp_extractor.value_net.parameters(), *self.value_net.parameters()]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"keep_prior": self.keep_prior}
