"""Makes the agents that recipes describe, new or started from a pretrained model."""

from dataclasses import replace
from typing import Any

import torch
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.common import DHMMPolicy, LanguageModelActor, WithActionMasks
from dhmm_rl.data.twin_episodes import only_next_reward_depends_on_actions
from dhmm_rl.errors import InputError
from dhmm_rl.model import Checkpoint
from dhmm_rl.recipes import AgentRecipe
from dhmm_rl.recipes.algorithms import ALGORITHMS, find_algorithm
from dhmm_rl.recipes.imports import load_policy


def make_agent(
    agent: AgentRecipe, env: VecEnv, seed: int, device: str, pretrained: Checkpoint | None, keep_prior: bool = False
) -> OnPolicyAlgorithm:
    """
    Make a new agent.

    :param agent: recipe of the agent
    :param env: environments as the agent sees them
    :param seed: seed of the agent
    :param device: device to train on
    :param pretrained: language model to start from
    :param keep_prior: create a prior, see :class:`SequencePolicy`, although there is no pretrained model; its weights are
        loaded later
    :raises InputError: for settings that the algorithm or the model does not take, or a pretrained model of another shape
    """
    settings: dict[str, Any] = {name: _schedule(name, value) for name, value in agent.ppo.items()}
    settings["policy_kwargs"] = _policy_kwargs(agent)
    algorithm = ALGORITHMS[agent.algorithm]
    if algorithm.uses_cached_state:
        settings["pretrained"] = pretrained
        if keep_prior:
            settings["policy_kwargs"]["keep_prior"] = True
    policy = load_policy(agent.policy) if ":" in agent.policy else agent.policy
    algorithm_class: Any = algorithm.load_class()
    try:
        made: OnPolicyAlgorithm = algorithm_class(policy, env, seed=seed, device=device, **settings)
    except InputError:
        raise
    except (AssertionError, TypeError, ValueError) as error:  # SB3 checks some settings by assertions
        raise InputError(f"the settings of agent {agent.name} do not fit: {str(error).splitlines()[0]}") from error
    if pretrained is not None and not algorithm.uses_cached_state:
        assert isinstance(made.policy, DHMMPolicy)
        made.policy.load_language_model(pretrained.model)
    return made


def _policy_kwargs(agent: AgentRecipe) -> dict[str, Any]:
    """Return the keywords of an agent's policy: the name of the activation becomes a class, the model's keywords are added."""
    policy_kwargs = dict(agent.ppo.get("policy_kwargs") or {})
    activation = policy_kwargs.get("activation_fn")
    if isinstance(activation, str):
        known = getattr(torch.nn, activation, None)
        if not (isinstance(known, type) and issubclass(known, torch.nn.Module)):
            raise InputError(f"activation_fn is {activation!r}; it is the name of a class of torch.nn, such as 'ReLU'")
        policy_kwargs["activation_fn"] = known
    if agent.reads_tokens:
        policy_kwargs["features_extractor_kwargs"] = agent.model
    return policy_kwargs


def with_discount(agent: AgentRecipe, env: VecEnv, seed: int) -> AgentRecipe:
    """
    Return an agent's recipe with a discount factor, if it has none and the environment says which: 0 where actions change only
    the next reward.

    :param agent: recipe of the agent
    :param env: environments without the agent's wrappers; they are seeded and stepped
    :param seed: seed of the environments
    """
    if "gamma" in agent.ppo or not only_next_reward_depends_on_actions(env, seed):
        return agent
    print("note: actions change only the next reward, so the discount factor is 0; the recipe's key ppo.gamma sets another")
    return replace(agent, ppo=agent.ppo | {"gamma": 0.0})


def with_masks(agent: Any, env: VecEnv) -> Any:
    """Wrap an agent so that it asks the environments for action masks, if they have masks and the agent can use them."""
    algorithm = find_algorithm(agent)
    takes_masks = isinstance(agent, LanguageModelActor) if algorithm is None else ALGORITHMS[algorithm].takes_masks
    return WithActionMasks(agent, env) if takes_masks and is_masking_supported(env) else agent


def rollout_size(agent: BaseAlgorithm) -> int:
    """Return the number of environment steps between two updates."""
    return int(getattr(agent, "n_steps", 1)) * agent.n_envs


def _schedule(name: str, value: Any) -> Any:
    """Return the schedule of a text such as ``lin_0.001``, as in RL-Zoo's settings; return any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        if not value.startswith("lin_"):
            raise ValueError
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    except ValueError as error:
        raise InputError(f"{name} is {value!r}; it is a number, or 'lin_0.001', which falls linearly to 0") from error
