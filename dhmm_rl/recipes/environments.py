"""Environments and tokenizers as recipes ask for them."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from numpy.typing import NDArray
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from dhmm_rl.data import Rollouts
from dhmm_rl.envs import (
    FlattenFields,
    ReportFaults,
    ReportingSubprocVecEnv,
    VecTokenStream,
    flatten_if_needed,
    make_gymnasium_vec_env,
)
from dhmm_rl.envs.wrappers.faults import environment_fault
from dhmm_rl.errors import EnvironmentFault, InputError
from dhmm_rl.files import reading
from dhmm_rl.recipes import AgentRecipe, EnvRecipe, Table
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.imports import find_env, load_wrapper
from dhmm_rl.tokens import Tokenizer, fitting
from dhmm_rl.tokens.fields import unflatten
from dhmm_rl.tokens.legal import checked_masks, choices_of


def make_envs(
    env: EnvRecipe, n_envs: int, seed: int, agent: AgentRecipe | None = None, render_mode: str | None = None
) -> VecEnv:
    """
    The plain environments side by side, monitored.

    Observations that SB3 cannot hold, such as texts, become arrays of their fields.

    :param agent: for whom; one that reads no tokens gets observations flattened to a Box, categories one-hot
        where Gymnasium flattens their space
    :raises InputError: when Gymnasium cannot make the environment, with its reason; for actions that the agent cannot take
    :raises EnvironmentFault: when the environment's constructor raises another error; later when ``reset`` or ``step`` do
    """
    venv = _side_by_side(env, n_envs, seed, agent, render_mode)
    if agent is not None:
        check_actions(venv.action_space, env.id)
    return venv


def check_actions(space: gym.Space[Any], env_id: str) -> None:
    """:raises InputError: for an action space that SB3's PPO does not have"""
    spaces = gym.spaces
    if isinstance(space, spaces.Box) and not space.is_bounded():
        what = "have no bounds"
    elif isinstance(space, spaces.MultiBinary) and len(space.shape) > 1:
        what = f"are a MultiBinary of {len(space.shape)} dimensions"
    elif not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        what = f"are a {type(space).__name__}"
    else:
        return
    raise InputError(
        f"actions of {env_id} {what}; PPO has bounded Box, Discrete, MultiDiscrete and MultiBinary of one dimension: turn them "
        "into one of these with gymnasium.wrappers.TransformAction"
    )


def _side_by_side(env: EnvRecipe, n_envs: int, seed: int, agent: AgentRecipe | None, render_mode: str | None) -> VecEnv:
    flat = _flat if agent is not None and not agent.reads_tokens else None
    kwargs = env.kwargs if render_mode is None else env.kwargs | {"render_mode": render_mode}
    find_env(env.id)
    try:
        if env.vectorization == "gymnasium":
            wrapper = partial(_wrapped, env_id=env.id, wrappers=env.wrappers, flat=flat) if env.wrappers or flat else None
            venv = VecMonitor(make_gymnasium_vec_env(env.id, n_envs, wrapper, **kwargs))
            venv.seed(seed)
            return venv
        side_by_side = ReportingSubprocVecEnv if env.vectorization == "subproc" else DummyVecEnv
        if side_by_side is ReportingSubprocVecEnv:
            _make(env.id, kwargs, env.wrappers).close()  # here its reason to fail can be told; a process only ends
        kwargs = {"env_id": env.id, "kwargs": kwargs, "wrappers": env.wrappers}
        return make_vec_env(
            _make, n_envs, seed=seed, wrapper_class=flat or flatten_if_needed, vec_env_cls=side_by_side, env_kwargs=kwargs
        )
    except (gym.error.Error, ImportError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the environment {env.id} cannot be made: {reason}") from error
    except (InputError, EnvironmentFault):
        raise
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise InputError(
            f"processes cannot be connected: the name of the folder for temporary files is too long, {tempfile.gettempdir()}; "
            "set TMPDIR to a shorter one"
        ) from error
    except Exception as error:
        raise environment_fault(f"the environment {env.id}, in its constructor,", error) from error


def _make(env_id: str, kwargs: Table, wrappers: dict[str, Table]) -> gym.Env[Any, Any]:
    """``gymnasium.make``, where this project's environments are registered: in the processes of a SubprocVecEnv, too."""
    return _wrapped(gym.make(find_env(env_id), **kwargs), env_id, wrappers)


def _wrapped(env: gym.Env[Any, Any], env_id: str, wrappers: dict[str, Table], flat: Any = None) -> gym.Env[Any, Any]:
    for name, kwargs in wrappers.items():
        env = load_wrapper(name)(env, **kwargs)
    env = ReportFaults(env, env_id)
    return env if flat is None else flat(env)


def draws_pictures(env: VecEnv) -> bool:
    """Whether there can be a video of an environment."""
    return "rgb_array" in env.get_attr("metadata")[0].get("render_modes", [])


class RefuseNan(VecCheckNan):
    """
    SB3's check for numbers that are none, in one line; and one of action masks, for all agents alike.

    :raises InputError: from ``reset`` and ``step`` for an observation or reward that is NaN or infinite, and for action masks
        that cannot be read or forbid everything
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, raise_exception=True)

    def check_array_value(self, name: str, value: NDArray[Any]) -> list[tuple[str, str]]:
        """What is wrong with the values of one name."""
        found: list[tuple[str, str]] = super().check_array_value(name, value)
        if found:
            where = ", ".join(f"{kind} in {of}" for of, kind in found)
            raise InputError(f"the environment gave {where}; an agent can learn from finite numbers only")
        return found

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of every environment."""
        results = super().env_method(method_name, *method_args, indices=indices, **method_kwargs)
        if method_name == "action_masks":
            return list(checked_masks(results, choices_of(self.action_space), len(results)))
        return results


def _flat(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    if isinstance(env.observation_space, gym.spaces.Box):
        return env
    try:
        return gym.wrappers.FlattenObservation(env)
    except NotImplementedError:  # Gymnasium flattens its own spaces only, not MiniGrid's missions
        return FlattenFields(env)


def plain_tokenizer(env: EnvRecipe, venv: VecEnv) -> Tokenizer:
    """
    The tokenizer that the environment's recipe asks for, fitted to nothing.

    :raises InputError: for settings that fit no field, and spaces that cannot be tokenized
    """
    return Tokenizer(venv.observation_space, venv.action_space, env.tokens.get("bins", 10), env.tokens.get("fields", {}))


def make_tokenizer(env: EnvRecipe, venv: VecEnv, rollouts: Rollouts | None = None) -> Tokenizer:
    """
    The tokenizer that the environment's recipe asks for.

    :param rollouts: what to fit on where the recipe does not say. With ``None`` the environments are stepped at random, unless
        the recipe says all that data could tell; settings of a recipe stay as they are if these steps can be told apart with
        them. Without rollouts the tokenizer has a report only if the steps changed it.
    :raises InputError: for settings that fit no field, and rollouts of another environment
    """
    tokenizer = plain_tokenizer(env, venv)
    if rollouts is not None:
        return tokenizer.fit(rollouts)
    if not (tokenizer.unfitted or fitting.binned_by_space(tokenizer)):
        return tokenizer
    stepped = make_envs(env, 1, seed=0)
    rows, _ = fitting.read(tokenizer, stepped, seed=0)
    stepped.close()
    whole = any(leaf.name in tokenizer.unfitted for leaf in tokenizer.observation_leaves)  # an image or a grid
    if env.tokens and not whole and not fitting.indistinct(tokenizer, rows):
        return tokenizer
    fitted = tokenizer.fit(unflatten(tokenizer.observation_space, rows))
    return tokenizer if fitted.encodes_like(tokenizer) else fitted


def wrap(venv: VecEnv, agent: AgentRecipe | None, tokenizer: Tokenizer | None, training: bool) -> VecEnv:
    """The environments as the agent sees them: tokens or frames, normalized values. Plain ones when there is no agent."""
    if agent is None:
        return venv
    if agent.reads_tokens:
        history = 1 if ALGORITHMS[agent.algorithm].uses_cached_state else agent.model["window"]
        venv = VecTokenStream(venv, tokenizer, history=history)
    venv = RefuseNan(venv)
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
