"""Environments and tokenizers as recipes ask for them."""

import functools
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from dhmm_rl.data import Rollouts
from dhmm_rl.envs import VecTokenStream, as_arrays
from dhmm_rl.errors import InputError
from dhmm_rl.files import reading
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.tokens import Tokenizer


def make_envs(
    env: EnvRecipe, n_envs: int, seed: int, agent: AgentRecipe | None = None, render_mode: str | None = None
) -> VecEnv:
    """
    The plain environments side by side, monitored.

    Observations that SB3 cannot hold, such as texts, become arrays of their fields.

    :param agent: for whom; one that reads no tokens gets observations flattened to a Box, categories one-hot
    :raises InputError: when Gymnasium cannot make the environment, with its reason
    """
    try:
        flat = agent is not None and not agent.reads_tokens
        kwargs = env.kwargs if render_mode is None else env.kwargs | {"render_mode": render_mode}
        make = functools.partial(gym.make, env.id, **kwargs)
        return make_vec_env(make, n_envs, seed=seed, wrapper_class=_flat if flat else as_arrays)
    except (gym.error.Error, ImportError) as error:
        raise InputError(f"the environment {env.id} cannot be made: {str(error).splitlines()[0]}") from error


def _flat(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return env if isinstance(env.observation_space, gym.spaces.Box) else gym.wrappers.FlattenObservation(env)


def make_tokenizer(env: EnvRecipe, venv: VecEnv, rollouts: Rollouts | None = None) -> Tokenizer:
    """
    The tokenizer that the environment's recipe asks for.

    :param rollouts: what to fit on where the recipe does not say; with ``None``, and a recipe that says nothing of tokens, the
        environments are stepped at random if the tokenizer needs to be fitted
    :raises InputError: for settings that fit no field, and rollouts of another environment
    """
    unknown = set(env.tokens) - {"bins", "fields"}
    if unknown:
        raise InputError(f"the recipe {env.name} has a key tokens.{unknown.pop()}; known are bins and fields")
    tokenizer = Tokenizer(venv.observation_space, venv.action_space, env.tokens.get("bins", 10), env.tokens.get("fields", {}))
    if rollouts is not None:
        return tokenizer.fit(rollouts)
    if env.tokens or not tokenizer.unfitted:
        return tokenizer
    stepped = make_envs(env, 1, seed=0)
    fitted = tokenizer.fit(stepped)
    stepped.close()
    return fitted


def wrap(venv: VecEnv, agent: AgentRecipe | None, tokenizer: Tokenizer | None, training: bool) -> VecEnv:
    """The environments as the agent sees them: tokens or frames, normalised values. Plain ones when there is no agent."""
    if agent is None:
        return venv
    if agent.reads_tokens:
        history = 1 if agent.algorithm == "SequencePPO" else agent.model["window"]
        venv = VecTokenStream(venv, tokenizer, history=history)
    if agent.frame_stack > 1:
        venv = VecFrameStack(venv, agent.frame_stack)
    if agent.normalize_reward or agent.normalize_observation:
        gamma = agent.ppo.get("gamma", 0.99)
        venv = VecNormalize(
            venv,
            training=training,
            norm_obs=agent.normalize_observation,
            norm_reward=agent.normalize_reward and training,
            gamma=gamma,
        )
    return venv


def restore_normalization(env: VecEnv, path: Path, training: bool) -> VecEnv:
    """
    The same environments with the statistics that a :class:`VecNormalize` of theirs was saved with; others as they are.

    :raises InputError: when they cannot be read
    """
    if not isinstance(env, VecNormalize):
        return env
    with reading(path):
        restored = VecNormalize.load(str(path), env.venv)
    restored.training, restored.norm_reward = training, env.norm_reward
    return restored
