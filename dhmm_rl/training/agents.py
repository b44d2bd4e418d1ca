"""Agents as recipes ask for them: built, started from a pretrained model, resumed."""

from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from dhmm_rl.errors import InputError
from dhmm_rl.model import Checkpoint
from dhmm_rl.policies import DHMMPolicy
from dhmm_rl.recipes import AgentRecipe


def make_agent(agent: AgentRecipe, env: VecEnv, seed: int, device: str, pretrained: Checkpoint | None) -> PPO:
    """
    A new agent.

    :param env: the environments as the agent sees them
    :param pretrained: the language model to start from
    :raises InputError: for settings that PPO or the model does not take, or a pretrained model of another build
    """
    settings: dict[str, Any] = {name: _schedule(value) for name, value in agent.ppo.items()}
    if agent.reads_tokens:
        policy_kwargs = settings.get("policy_kwargs", {})
        settings["policy_kwargs"] = {**policy_kwargs, "features_extractor_kwargs": agent.model}
    try:
        ppo = PPO(agent.policy, env, seed=seed, device=device, **settings)
    except TypeError as error:
        raise InputError(f"the settings of agent {agent.name} do not fit: {error}") from error
    if pretrained is not None:
        assert isinstance(ppo.policy, DHMMPolicy)
        ppo.policy.load_language_model(pretrained.model)
    return ppo


def resume_agent(checkpoint: Path, env: VecEnv, device: str) -> PPO:
    """
    The agent of a run's checkpoint on its environments, whose reward statistics are read back.

    :raises InputError: when the checkpoint cannot be read
    """
    if isinstance(env, VecNormalize):
        env = VecNormalize.load(str(checkpoint / "vecnormalize.pkl"), env.venv)
    agent = load_agent(checkpoint / "model.zip", env, device)
    agent.set_random_seed((agent.seed or 0) + agent.num_timesteps)
    return agent


def load_agent(path: Path, env: VecEnv | None, device: str) -> PPO:
    """
    An agent from its zip.

    :raises InputError: when there is none, or it is cut short, or of other spaces
    """
    if not path.is_file():
        raise InputError(f"there is no trained agent {path}")
    try:
        return PPO.load(path, env=env, device=device)
    except Exception as error:  # zipfile, torch and SB3 raise whatever they met
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as an agent ({reason}): it is cut short, or of another environment") from error


def rollout_size(agent: BaseAlgorithm) -> int:
    """Environment steps between two updates."""
    return int(getattr(agent, "n_steps", 1)) * agent.n_envs


def _schedule(value: Any) -> Any:
    """``lin_0.001`` falls linearly from 0.001 to 0, as in RL-Zoo's settings."""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value
