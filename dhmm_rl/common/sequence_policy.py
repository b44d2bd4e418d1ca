"""
DHMM-GPT2 as a policy that acts on a cached state and is trained on whole segments.

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
from dhmm_rl.model import DHMMGPT2, HiddenStates, ModelState
from dhmm_rl.model.config import DEFAULT_WINDOW
from dhmm_rl.model.generation import check_predictions
from dhmm_rl.model.outputs import CachedParameters
from dhmm_rl.model.steps import can_inspect
from dhmm_rl.tokens import RESET

FORGOTTEN = (
    "predict was called in the middle of an episode without the state that it last returned, so the policy has forgotten the "
    "episode; call: action, state = model.predict(observation, state, episode_start)"
)


class PolicyStep(NamedTuple):
    """
    What the policy returns for one step of every environment.

    :param actions: actions for the environments, (N, ...)
    :param unclipped: actions before a Gaussian head's values were clipped to the action space, (N, ...)
    :param stored: actions in the form that the policy evaluates: token ids, or values under a Gaussian head, (N, A)
    :param values: value estimates, (N,)
    :param log_prob: log-probabilities of the actions, (N,)
    :param state: state for the next step
    """

    actions: NDArray[Any]
    unclipped: NDArray[Any]
    stored: Tensor
    values: Tensor
    log_prob: Tensor
    state: ModelState


class SequencePolicy(DHMMPolicy):
    """
    :class:`DHMMPolicy` with memory: it reads one step at a time and keeps a state, the attention's cache and the belief.

    :param features_extractor_kwargs: keywords of :class:`DHMMGPT2`; ``window`` is 16 steps by default
    :param keep_prior: keep a copy of the pretrained model, the prior, that training does not change; see :class:`SequencePPO`
    :param require_state: raise an error instead of a warning when ``predict`` is called without a state in the middle of an
        episode
    """

    def __init__(
        self,
        *args: Any,
        features_extractor_kwargs: dict[str, Any] | None = None,
        keep_prior: bool = False,
        require_state: bool = False,
        **kwargs: Any,
    ) -> None:
        self.keep_prior, self.require_state = keep_prior, require_state
        kwargs["features_extractor_kwargs"] = {"window": DEFAULT_WINDOW} | (features_extractor_kwargs or {})
        super().__init__(*args, **kwargs)

    @property
    def burn_in(self) -> int:
        """Number of earlier steps that the output of a step depends on through attention: layers · (window - 1)."""
        return self.language_model.blocks.burn_in

    @property
    def action_choices(self) -> list[int]:
        """Number of choices of each action field; a mask has one flag per choice."""
        return self._action_tokens().choices

    def load_language_model(self, pretrained: DHMMGPT2) -> None:
        """Copy the weights of a pretrained model, into the prior, too, if this policy keeps one."""
        super().load_language_model(pretrained)
        if self.prior is not None:
            self.prior.load_state_dict(pretrained.state_dict())

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.prior: DHMMGPT2 | None = None
        if self.keep_prior:
            if self.action_head != "tokens":
                raise InputError("a prior chooses action tokens, so keep_prior does not go with action_head = 'gaussian'")
            self.prior = copy.deepcopy(self.language_model).requires_grad_(False)

    # Acting

    @torch.no_grad()
    def act(
        self,
        tokens: Tensor,
        state: ModelState,
        masks: NDArray[np.bool_] | None = None,
        deterministic: bool | NDArray[np.bool_] = False,
    ) -> PolicyStep:
        """
        Read the current step of every environment and choose actions.

        :param tokens: tokens of the step, (N, C)
        :param state: state of the N streams, which must not be used again
        :param masks: legal choices, (N, all choices)
        :param deterministic: take the likeliest actions instead of sampling: in all environments, or in each of them (N,)
        :raises InputError: if weights are NaN or infinite, and for masks that forbid every action or have another shape
        """
        greedy = _greedy_environments(deterministic, len(tokens), self.device)
        legal = None if masks is None else check_masks(masks, self.action_choices, len(tokens), self.device)
        stored, values, log_prob, state = self.act_on_tensors(tokens, state, legal, greedy)
        return self.policy_step(stored, values, log_prob, state)

    def act_on_tensors(
        self, tokens: Tensor, state: ModelState, legal: Tensor | None = None, greedy: bool | Tensor = False
    ) -> tuple[Tensor, Tensor, Tensor, ModelState]:
        """
        :meth:`act` without what NumPy does.

        :return: the fields ``stored``, ``values``, ``log_prob`` and ``state`` of :class:`PolicyStep`
        """
        features, state = self.read_step(tokens, state)
        stored, log_prob = self._choose(features, state.parameters, legal, greedy)
        return stored, self.values(features), log_prob, state

    def policy_step(self, stored: Tensor, values: Tensor, log_prob: Tensor, state: ModelState) -> PolicyStep:
        """
        Decode what :meth:`act_on_tensors` chose.

        :raises InputError: if weights are NaN or infinite
        """
        actions, unclipped = self._decode(stored, log_prob)
        return PolicyStep(actions, unclipped, stored, values, log_prob, state)

    def _choose(
        self,
        features: Tensor,
        parameters: CachedParameters,
        legal: Tensor | None,
        greedy: bool | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Choose actions from features (N, F); returns them in the form that is stored, and their log-probabilities."""
        distribution = self.distribution(features, legal, parameters)
        if isinstance(distribution, ActionTokens):
            return distribution.choose_ids(greedy)
        if isinstance(greedy, bool):
            stored = distribution.get_actions(greedy)
        else:
            stored = torch.where(greedy[:, None], distribution.mode(), distribution.sample())
        return stored, distribution.log_prob(stored)

    def _decode(self, stored: Tensor, log_prob: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Actions for the environments, and before clipping, from actions in the form that is stored."""
        if self.device.type != "cpu":  # on a GPU, nothing was checked before
            check_predictions(log_prob[..., None])
        if self.action_head == "tokens":
            actions = self.tokenizer.decode_action(stored.cpu().numpy())
            return actions, actions
        space = self.action_space
        unclipped = stored.cpu().numpy().reshape(-1, *space.shape)  # type: ignore[misc]
        return np.clip(unclipped, space.low, space.high), unclipped  # type: ignore[attr-defined]

    def read_step(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Read one step of every stream (N, C); returns features (N, F) and the new state."""
        padded = None if can_inspect(tokens) else True
        states, state = self.language_model.step_hidden_states(tokens, state, padded=padded)
        return self.features(states)[:, 0], state

    def values(self, features: Tensor) -> Tensor:
        """The critic's value estimates (...) from features (..., F)."""
        value: Tensor = self.value_net(self.mlp_extractor.forward_critic(features))
        return value[..., 0]

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool | NDArray[np.bool_] = False,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """
        Choose actions for the current observations of token streams.

        :param observation: observations (N, H, C), or (H, C) of a single environment
        :param state: state that the last call returned; ``None`` when episodes begin, or if the history reaches back to
            their beginning
        :param episode_start: ignored, because the stream itself shows where episodes begin
        :param deterministic: take the likeliest action instead of sampling one: in all environments, or in each of them (N,)
        :param action_masks: legal choices, (N, all choices)
        :return: actions (N, ...) and the state for the next call
        :raises InputError: for an observation that is not of a token stream, for a state of another number of environments, and
            without a state in the middle of an episode if the policy requires one
        """
        if self.training:
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
                if self.require_state:
                    raise InputError(FORGOTTEN)
                warnings.warn(FORGOTTEN, stacklevel=3)
            _, memory = self.language_model.prefill(tokens[:, :-1])
        elif len(state.belief) != len(tokens):
            raise InputError(f"the state is of {len(state.belief)} environments, the observations are of {len(tokens)}")
        else:
            memory = state[:]
        actions, *_, memory = self.act(tokens[:, -1], memory, action_masks, deterministic)
        return (actions[0] if single else actions), memory

    # Training

    def read_segments(self, samples: SegmentSamples) -> HiddenStates:
        """
        Run the parallel pass; returns hidden states of the T steps after the burn-in.

        The burn-in rebuilds the state in which the rollout read these steps, so the outputs are the same.
        """
        steps = samples.following.shape[1]
        padded = None if can_inspect(samples.tokens) else True
        return self.language_model.hidden_states(
            samples.tokens, belief=samples.belief, position=samples.position, last=steps, padded=padded
        )

    def evaluate_segments(self, samples: SegmentSamples) -> tuple[Tensor, Tensor, Distribution, HiddenStates]:
        """
        Evaluate the actions of whole segments.

        :return: values (B · T,), log-probabilities of the actions (B · T,), the action distribution, and the hidden states
            that :meth:`read_segments` returns
        """
        states = self.read_segments(samples)
        features = self.features(states).flatten(0, 1)
        distribution = self.distribution(features, samples.masks, states.parameters)
        if isinstance(distribution, ActionTokens):
            log_prob = distribution.log_prob_of_ids(samples.actions.long())
        else:
            log_prob = distribution.log_prob(samples.actions)
        return self.values(features), log_prob, distribution, states

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that only the critic uses."""
        return [*self.mlp_extractor.value_net.parameters(), *self.value_net.parameters()]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"keep_prior": self.keep_prior, "require_state": self.require_state}
        return super()._get_constructor_parameters() | own


def _greedy_environments(deterministic: bool | NDArray[np.bool_], environments: int, device: torch.device) -> bool | Tensor:
    """
    Whether to take the likeliest action: in all environments, or as booleans (N,) in each of them.

    :raises InputError: for an array of another shape
    """
    if np.ndim(deterministic) == 0:
        return bool(deterministic)
    if np.shape(deterministic) != (environments,):
        raise InputError(
            f"deterministic has shape {np.shape(deterministic)}; it must be one boolean, or one for each of {environments} "
            "environments"
        )
    return torch.as_tensor(deterministic, dtype=torch.bool, device=device)
