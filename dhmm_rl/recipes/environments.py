"""Environments and tokenizers that recipes describe."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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

from dhmm_rl.data import random_observations
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
from dhmm_rl.tokens.action_masks import choices_per_field, validate_masks


class EnvFactory:
    """
    Makes the environments of a recipe. A command makes one factory and passes it on.

    :param recipe: the environment's recipe
    :param seed: seed of the environments
    :param agent: agent that acts in the environments, see :func:`make_envs`
    """

    def __init__(self, recipe: EnvRecipe, seed: int, agent: AgentRecipe | None = None) -> None:
        self.recipe, self.seed, self.agent = recipe, seed, agent
        self._training_envs: VecEnv | None = None
        self._spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None

    def make(self, n_envs: int, render_mode: str | None = None) -> VecEnv:
        """
        Make environments, see :func:`make_envs`.

        :param n_envs: number of environments
        :param render_mode: Gymnasium's render mode; the recipe's when ``None``
        """
        return make_envs(self.recipe, n_envs, self.seed, self.agent, render_mode)

    @property
    def training_envs(self) -> VecEnv:
        """
        The environments that the agent is trained in. They are made at the first use.

        Building environments can take long, so these also serve to try out the agent and to collect random rollouts before
        the training. Each of these uses begins with seeding and resetting them, as SB3 does at the beginning of a training.
        """
        if self._training_envs is None:
            if self.agent is None:
                raise ValueError("a factory without an agent has no training environments")
            self._training_envs = self.make(self.agent.n_envs)
        return self._training_envs

    @contextmanager
    def borrow(self, n_envs: int) -> Iterator[VecEnv]:
        """
        Lend the training environments for the block if they are made and have the right number; else others, closed at its end.

        :param n_envs: number of environments
        """
        if self._training_envs is not None and self._training_envs.num_envs == n_envs:
            yield self._training_envs
            return
        venv = self.make(n_envs)
        try:
            yield venv
        finally:
            venv.close()

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""
        return self.spaces[0]

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of one environment."""
        return self.spaces[1]

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Observation space and action space of one environment; an environment is made for them if none has been made."""
        if self._spaces is None:
            with self.borrow(1 if self._training_envs is None else self._training_envs.num_envs) as venv:
                self._spaces = venv.observation_space, venv.action_space
        return self._spaces


def make_envs(
    env: EnvRecipe, n_envs: int, seed: int, agent: AgentRecipe | None = None, render_mode: str | None = None
) -> VecEnv:
    """
    Make environments as one monitored vector environment, with the wrappers of the recipe but not those of the agent.

    Observations that SB3 cannot hold, such as texts, become arrays of their fields.

    :param env: the environment's recipe
    :param n_envs: number of environments
    :param seed: seed of the environments
    :param agent: agent that acts in the environments. If it reads no tokens, its observations are flattened to a Box, with
        categories one-hot where Gymnasium flattens their space.
    :param render_mode: Gymnasium's render mode; the recipe's when ``None``
    :raises InputError: if Gymnasium cannot make the environment, with its reason, or if the agent cannot take its actions
    :raises EnvironmentFault: if the environment's constructor raises another error; later if ``reset`` or ``step`` raise one
    """
    venv = _make_vec_env(env, n_envs, seed, agent, render_mode)
    if agent is not None:
        check_actions(venv.action_space, env.id)
    return venv


def check_actions(space: gym.Space[Any], env_id: str) -> None:
    """
    Check that SB3's PPO supports an action space.

    :param space: the action space
    :param env_id: name of the environment, for the message
    :raises InputError: if it is not supported
    """
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


def _make_vec_env(env: EnvRecipe, n_envs: int, seed: int, agent: AgentRecipe | None, render_mode: str | None) -> VecEnv:
    """Make the vector environment that the recipe's ``vectorization`` names; turn errors of its making into lines for users."""
    flatten = _flatten_to_box if agent is not None and not agent.reads_tokens else None
    kwargs = env.kwargs if render_mode is None else env.kwargs | {"render_mode": render_mode}
    find_env(env.id)
    try:
        if env.vectorization == "gymnasium":
            needs_wrapper = env.wrappers or flatten
            wrapper = partial(_wrap_env, env_id=env.id, wrappers=env.wrappers, flatten=flatten) if needs_wrapper else None
            venv = VecMonitor(make_gymnasium_vec_env(env.id, n_envs, wrapper, **kwargs))
            venv.seed(seed)
            return venv
        vec_env_cls: type[DummyVecEnv | ReportingSubprocVecEnv] = DummyVecEnv
        if env.vectorization == "subproc":
            vec_env_cls = ReportingSubprocVecEnv
            # A process whose environment cannot be made ends without a reason, so the first one is made in this process.
            _make_env(env.id, kwargs, env.wrappers).close()
        env_kwargs = {"env_id": env.id, "kwargs": kwargs, "wrappers": env.wrappers}
        return make_vec_env(
            _make_env,
            n_envs,
            seed=seed,
            wrapper_class=flatten or flatten_if_needed,
            vec_env_cls=vec_env_cls,
            env_kwargs=env_kwargs,
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


def _make_env(env_id: str, kwargs: Table, wrappers: dict[str, Table]) -> gym.Env[Any, Any]:
    """Call ``gymnasium.make`` after registering the environment, which the processes of a SubprocVecEnv need, too."""
    return _wrap_env(gym.make(find_env(env_id), **kwargs), env_id, wrappers)


def _wrap_env(env: gym.Env[Any, Any], env_id: str, wrappers: dict[str, Table], flatten: Any = None) -> gym.Env[Any, Any]:
    """Add the wrappers of a recipe, the report of faults, and a wrapper that flattens observations if there is one."""
    for name, kwargs in wrappers.items():
        env = load_wrapper(name)(env, **kwargs)
    env = ReportFaults(env, env_id)
    return env if flatten is None else flatten(env)


def supports_rgb_array(env: VecEnv) -> bool:
    """Return whether an environment can be rendered as images, so that a video of it can be made."""
    return "rgb_array" in env.get_attr("metadata")[0].get("render_modes", [])


class VecRaiseOnNan(VecCheckNan):
    """
    SB3's ``VecCheckNan`` with errors of one line, which also checks the environments' action masks for all agents.

    :param venv: the vector environment
    :raises InputError: from ``reset`` and ``step`` if an observation or reward is NaN or infinite, and if action masks cannot
        be read or forbid every action
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, raise_exception=True)

    def check_array_value(self, name: str, value: NDArray[Any]) -> list[tuple[str, str]]:
        """
        Check the values of one array.

        :param name: name of the array
        :param value: the array
        """
        wrong: list[tuple[str, str]] = super().check_array_value(name, value)
        if wrong:
            where = ", ".join(f"{kind} in {array}" for array, kind in wrong)
            raise InputError(f"the environment gave {where}; an agent can learn from finite numbers only")
        return wrong

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """
        Call a method of every environment; check the results of ``action_masks``.

        :param method_name: name of the method
        :param indices: indices of the environments; all by default
        """
        results = super().env_method(method_name, *method_args, indices=indices, **method_kwargs)
        if method_name == "action_masks":
            return list(validate_masks(results, choices_per_field(self.action_space), len(results)))
        return results


def _flatten_to_box(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Add a wrapper that flattens observations to a Box, unless they are one."""
    if isinstance(env.observation_space, gym.spaces.Box):
        return env
    try:
        return gym.wrappers.FlattenObservation(env)
    except NotImplementedError:  # Gymnasium flattens its own spaces only, not MiniGrid's missions
        return FlattenFields(env)


def unfitted_tokenizer(env: EnvRecipe, envs: VecEnv | EnvFactory) -> Tokenizer:
    """
    Make the tokenizer of a recipe, not yet fitted to data.

    :param env: the environment's recipe
    :param envs: environments of the recipe, or their factory; only the spaces are used
    :raises InputError: for settings that fit no field, and for spaces that cannot be tokenized
    """
    return Tokenizer(envs.observation_space, envs.action_space, env.tokens.get("bins"), env.tokens.get("fields", {}))


def make_tokenizer(env: EnvRecipe, envs: VecEnv | EnvFactory) -> Tokenizer:
    """
    Make the tokenizer of a recipe, fitted to random steps unless the recipe says everything that data could tell.

    Settings of the recipe stay as they are if the random steps can be told apart with them. The tokenizer has a report only if
    the steps changed it.

    :param env: the environment's recipe
    :param envs: environments of the recipe, or their factory; only the spaces are used
    :raises InputError: for settings that fit no field, and for spaces that cannot be tokenized
    """
    tokenizer = unfitted_tokenizer(env, envs)
    if not (tokenizer.unfitted or fitting.binned_by_space(tokenizer)):
        return tokenizer
    stepped = make_envs(env, 1, seed=0)
    observations = random_observations(stepped)
    stepped.close()
    rows, _ = fitting.read_rows(tokenizer, observations)
    needs_fit = any(leaf.name in tokenizer.unfitted for leaf in tokenizer.observation_leaves)  # an image or a grid
    if env.tokens and not needs_fit and not fitting.poorly_resolved(tokenizer, rows):
        return tokenizer
    fitted = tokenizer.fit(observations)
    return tokenizer if fitted.encodes_like(tokenizer) else fitted


def wrap(venv: VecEnv, agent: AgentRecipe | None, tokenizer: Tokenizer | None, training: bool) -> VecEnv:
    """
    Add an agent's wrappers: for the token stream, checks for NaN, stacked frames and normalization.

    :param venv: environments without the agent's wrappers
    :param agent: the agent's recipe; no wrapper is added when ``None``
    :param tokenizer: tokenizer of the token stream, for an agent that reads tokens
    :param training: whether the statistics of the normalization are updated, and rewards normalized
    """
    if agent is None:
        return venv
    if agent.reads_tokens:
        history = 1 if ALGORITHMS[agent.algorithm].uses_cached_state else agent.model["window"]
        venv = VecTokenStream(venv, tokenizer, history=history)
    venv = VecRaiseOnNan(venv)
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


def load_vecnormalize(env: VecEnv, path: Path, training: bool) -> VecEnv:
    """
    Load saved statistics into a ``VecNormalize``; return environments without one as they are.

    :param env: environments as the agent sees them
    :param path: file of ``VecNormalize.save``
    :param training: whether the statistics are updated further
    :raises InputError: if the file cannot be read
    """
    if not isinstance(env, VecNormalize):
        return env
    with reading(path):
        restored = VecNormalize.load(str(path), env.venv)
    restored.training, restored.norm_reward = training, env.norm_reward
    return restored
