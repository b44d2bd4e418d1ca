"""Agents as recipes ask for them: built, started from a pretrained model, resumed."""

from pathlib import Path
from typing import Any

import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.errors import InputError
from dhmm_rl.files import reading
from dhmm_rl.model import Checkpoint
from dhmm_rl.policies import DHMMPolicy, LanguageModelActor
from dhmm_rl.recipes import AgentRecipe
from dhmm_rl.sequence_ppo import SequencePPO, WithActionMasks
from dhmm_rl.training.environments import restore_normalization

ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {
    "SequencePPO": SequencePPO,
    "PPO": PPO,
    "RecurrentPPO": RecurrentPPO,
    "MaskablePPO": MaskablePPO,
}
MASKED = ("SequencePPO", "MaskablePPO")
"""Those that take action masks."""


def make_agent(agent: AgentRecipe, env: VecEnv, seed: int, device: str, pretrained: Checkpoint | None) -> OnPolicyAlgorithm:
    """
    A new agent.

    :param env: the environments as the agent sees them
    :param pretrained: the language model to start from
    :raises InputError: for settings that the algorithm or the model does not take, or a pretrained model of another build
    """
    settings: dict[str, Any] = {name: _schedule(name, value) for name, value in agent.ppo.items()}
    policy_kwargs = dict(settings.pop("policy_kwargs", {}))
    activation = policy_kwargs.get("activation_fn")
    if isinstance(activation, str):
        if not hasattr(torch.nn, activation):
            raise InputError(f"activation_fn is {activation!r}; it is the name of a class of torch.nn, such as 'ReLU'")
        policy_kwargs["activation_fn"] = getattr(torch.nn, activation)
    if agent.reads_tokens:
        policy_kwargs["features_extractor_kwargs"] = agent.model
    sequence = agent.algorithm == "SequencePPO"
    if sequence:
        settings["pretrained"] = pretrained
    algorithm: Any = ALGORITHMS[agent.algorithm]
    try:
        made: OnPolicyAlgorithm = algorithm(
            agent.policy, env, seed=seed, device=device, policy_kwargs=policy_kwargs, **settings
        )
    except InputError:
        raise
    except (AssertionError, TypeError, ValueError) as error:  # SB3 asserts, too
        raise InputError(f"the settings of agent {agent.name} do not fit: {str(error).splitlines()[0]}") from error
    if pretrained is not None and not sequence:
        assert isinstance(made.policy, DHMMPolicy)
        made.policy.load_language_model(pretrained.model)
    return made


def resume_agent(recipe: AgentRecipe, checkpoint: Path, env: VecEnv, device: str) -> OnPolicyAlgorithm:
    """
    The agent of a run's checkpoint on its environments, whose reward statistics are read back.

    :raises InputError: when the checkpoint cannot be read
    """
    env = restore_normalization(env, checkpoint / "vecnormalize.pkl", training=True)
    agent = load_agent(recipe, checkpoint / "model.zip", env, device)
    agent.set_random_seed((agent.seed or 0) + agent.num_timesteps)
    return agent


def load_agent(recipe: AgentRecipe, path: Path, env: VecEnv | None, device: str) -> OnPolicyAlgorithm:
    """
    An agent from its zip.

    :raises InputError: when there is none, or it is cut short, or of other spaces
    """
    if not path.is_file():
        raise InputError(f"there is no trained agent {path}")
    with reading(path):
        return ALGORITHMS[recipe.algorithm].load(path, env=env, device=device)


def with_masks(agent: Any, env: VecEnv) -> Any:
    """The agent, asking the environments for their action masks if they have any and it can use them."""
    takes_masks = isinstance(agent, SequencePPO | LanguageModelActor | MaskablePPO) and is_masking_supported(env)
    return WithActionMasks(agent, env) if takes_masks else agent


def rollout_size(agent: BaseAlgorithm) -> int:
    """Environment steps between two updates."""
    return int(getattr(agent, "n_steps", 1)) * agent.n_envs


def _schedule(name: str, value: Any) -> Any:
    """``lin_0.001`` falls linearly from 0.001 to 0, as in RL-Zoo's settings."""
    if not isinstance(value, str):
        return value
    try:
        if not value.startswith("lin_"):
            raise ValueError
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    except ValueError as error:
        raise InputError(f"{name} is {value!r}; it is a number, or 'lin_0.001', which falls linearly to 0") from error
