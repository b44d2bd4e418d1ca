"""DHMM-GPT2 as the policy of stock SB3 algorithms."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from dhmm_rl.common.distributions import ActionTokens, GaussianActions
from dhmm_rl.envs import TokenSpace
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, CachedParameters, HiddenStates
from dhmm_rl.model.generation import check_predictions
from dhmm_rl.model.steps import can_inspect
from dhmm_rl.tokens import Tokenizer


def as_ids(observations: Tensor) -> Tensor:
    """
    Convert the ids of a token stream, of any type, to integers.

    :raises InputError: for numbers that are not whole, which come from a ``VecNormalize`` that normalizes observations
    """
    ids = observations.long()
    if observations.is_floating_point() and bool((ids != observations).any()):
        raise InputError("observations are not the ids of a token stream; under VecNormalize they stay so with norm_obs=False")
    return ids


class DHMMFeaturesExtractor(BaseFeaturesExtractor):
    """
    Runs DHMM-GPT2 over the last H steps; the features are the last step's hidden output and belief, (B, D + N · K).

    :param observation_space: observation space of a :class:`TokenStream` or :class:`VecTokenStream`
    :param settings: keywords of :class:`DHMMGPT2`, e.g. ``embed_size``, ``layers``, ``num_states``
    :raises InputError: for any other observation space
    """

    def __init__(self, observation_space: spaces.Space[Any], **settings: Any) -> None:
        if not isinstance(observation_space, TokenSpace):
            raise InputError(
                "DHMMPolicy reads token streams: wrap the environment in TokenStream, or VecTokenStream if it is a VecEnv"
            )
        model = DHMMGPT2.from_tokenizer(observation_space.tokenizer, **settings)
        super().__init__(observation_space, features_dim=model.embed_size + math.prod(model.belief_shape))
        self.model = model

    def forward(self, observations: Tensor) -> Tensor:
        """
        Compute the features (B, D + N · K).

        :param observations: token ids, (B, H, C); SB3 passes them as floats, which represent them exactly
        :raises InputError: for numbers that are not whole
        """
        states = self.model.hidden_states(as_ids(observations), last=1)
        return torch.cat([states.hidden[:, 0], states.belief[:, 0].flatten(1)], dim=1)


class DHMMPolicy(ActorCriticPolicy):
    """
    Actor and critic on one DHMM-GPT2, for SB3's own ``PPO`` and ``A2C`` on a :class:`TokenStream`.

    The actor is the language model's prediction at the action slots; the critic is a small network on the features. Learn on
    normalized returns (``VecNormalize(env, norm_obs=False)``): otherwise the critic's gradient dominates in the model.

    :param observation_space: observation space of a token stream
    :param action_space: action space of the environment
    :param lr_schedule: learning rate schedule
    :param net_arch: layers of the critic, ``[64]`` or ``dict(vf=[64])``; the actor has no layers besides the language model
    :param features_extractor_class: :class:`DHMMFeaturesExtractor` or a subclass
    :param features_extractor_kwargs: keywords of :class:`DHMMGPT2`
    :param action_head: ``tokens``, or for Box actions ``gaussian``: a diagonal Gaussian on the features, as in SB3
    :param kwargs: other keywords of ``ActorCriticPolicy``, except ``use_sde=True`` and ``share_features_extractor=False``
    :raises InputError: for a setting that this policy cannot have
    """

    features_extractor: DHMMFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = DHMMFeaturesExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        action_head: str = "tokens",
        **kwargs: Any,
    ) -> None:
        if action_head not in ("tokens", "gaussian"):
            raise InputError(f"action_head is {action_head!r}; it must be 'tokens' or 'gaussian'")
        if action_head == "gaussian" and not isinstance(action_space, spaces.Box):
            raise InputError(f"action_head = 'gaussian' is for Box actions, not for {action_space}")
        self.action_head = action_head
        if kwargs.pop("use_sde", False):
            raise InputError("DHMMPolicy chooses action tokens; gSDE (use_sde=True) is for Gaussian actions")
        if not kwargs.get("share_features_extractor", True):
            raise InputError(
                "DHMMPolicy's actor and critic share one language model; share_features_extractor=False is not possible"
            )
        if not issubclass(features_extractor_class, DHMMFeaturesExtractor):
            raise InputError(
                f"DHMMPolicy reads token streams with a DHMMFeaturesExtractor, not with a {features_extractor_class.__name__}"
            )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": [], "vf": _critic_layers(net_arch)},
            ortho_init=False,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            **{key: value for key, value in kwargs.items() if key != "ortho_init"},
        )

    @property
    def language_model(self) -> DHMMGPT2:
        """The DHMM-GPT2 that actor and critic share."""
        return self.features_extractor.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the streams that the policy reads."""
        assert isinstance(self.observation_space, TokenSpace)
        return self.observation_space.tokenizer

    def load_language_model(self, pretrained: DHMMGPT2) -> None:
        """
        Copy the weights of a pretrained model.

        :raises InputError: if the two models have different settings
        """
        expected, found = self.language_model.config.to_dict(), pretrained.config.to_dict()
        for name in expected:
            if expected[name] != found[name]:
                raise InputError(f"the pretrained model has {name} = {found[name]}, the policy {expected[name]}")
        self.language_model.load_state_dict(pretrained.state_dict())

    def features(self, states: HiddenStates) -> Tensor:
        """Input of actor and critic: the model's hidden output and its belief, (B, T, D + N · K)."""
        return torch.cat([states.hidden, states.belief.flatten(2)], dim=-1)

    def distribution(
        self, features: Tensor, masks: Tensor | None = None, parameters: CachedParameters | None = None
    ) -> Distribution:
        """
        The distribution of the action, given the features.

        :param features: features of B steps, (B, D + N · K)
        :param masks: legal choices, (B, all choices); see :meth:`ActionTokens.proba_distribution`
        :param parameters: cached parameters of the pass that computed the features; computed by default
        """
        if self.action_head == "gaussian":
            assert isinstance(self.action_dist, GaussianActions)
            if masks is not None:
                raise InputError("action masks are for action tokens; action_head = 'gaussian' cannot obey them")
            mean = self.action_net(features)
            if can_inspect(mean):
                check_predictions((mean + self.log_std + self.log_std.exp())[..., None])
            return self.action_dist.proba_distribution(mean, self.log_std)
        model = self.language_model
        hidden, belief = features[:, None, : model.embed_size], features[:, None, model.embed_size :]
        belief = belief.reshape(len(belief), 1, *model.belief_shape)
        return self._action_tokens().proba_distribution(
            HiddenStates(hidden, belief, parameters or model.cached_parameters()), masks
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, 1)
        self.action_dist: Distribution = self._action_tokens()
        if self.action_head == "gaussian":
            assert isinstance(self.action_space, spaces.Box)
            gaussian = GaussianActions(int(np.prod(self.action_space.shape)))
            self.action_net, self.log_std = gaussian.proba_distribution_net(self.features_dim, self.log_std_init)
            assert isinstance(self.action_net, nn.Linear)
            nn.init.zeros_(self.action_net.weight)
            self.action_dist = gaussian
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _action_tokens(self) -> ActionTokens:
        return ActionTokens(self.language_model, self.tokenizer)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        return self.distribution(latent_pi)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"action_head": self.action_head}


def _critic_layers(net_arch: list[Any] | dict[str, list[int]] | None) -> list[int]:
    """The critic's layers in a ``net_arch`` as SB3 takes it: one list for actor and critic, or a dictionary of one each."""
    if isinstance(net_arch, list) and net_arch and isinstance(net_arch[0], dict):  # the form of SB3 before 1.8
        net_arch = net_arch[0]
    if not isinstance(net_arch, dict):
        return [64] if net_arch is None else net_arch
    if net_arch.get("pi"):
        warnings.warn(f"net_arch['pi'] = {net_arch['pi']} has no effect: {NO_ACTOR_LAYERS}", stacklevel=2)
    return net_arch.get("vf", [64])


NO_ACTOR_LAYERS = "the actor of DHMMPolicy is the language model, and has no other layers"

for _algorithm in (PPO, A2C):
    _algorithm.policy_aliases["DHMMPolicy"] = DHMMPolicy
