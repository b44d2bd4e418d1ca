"""
Random legal actions, and the observations that they lead to.

Shapes: N environments, R rows.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.tokens import bounded
from dhmm_rl.tokens.action_masks import choices_per_field, validate_masks
from dhmm_rl.tokens.fields import flatten, unflatten

RANDOM_STEPS = 2000
"""Default number of environment steps of :func:`random_observations`."""


def action_masks_of(env: VecEnv, choices: Sequence[int] | None) -> NDArray[np.bool_]:
    """
    Ask the environments for their action masks.

    :param env: environments with a method ``action_masks``
    :param choices: number of choices of each action field; see :func:`choices_per_field`
    :return: masks, (N, sum of ``choices``)
    :raises InputError: for masks that cannot be read, and for a mask that forbids every choice of a field
    """
    return validate_masks(env.env_method("action_masks"), choices, env.num_envs)


def random_policy(env: gym.Env[Any, Any] | VecEnv) -> Callable[[], Any]:
    """
    Return a function that draws a random legal action.

    The random numbers are those of ``env.action_space``, so ``env.action_space.seed(seed)`` makes the actions reproducible.

    :param env: an environment, or a vector environment; a method ``action_masks`` of it is obeyed. The masks of a Box are
        ignored with a warning: they are over the bins of a tokenizer, which a random action does not have
    :return: a function without arguments; it returns one action, or actions of all environments, (N, ...)
    """
    space = env.action_space
    choices = choices_per_field(space)
    # Asked once: a vector environment may have to ask other processes.
    masked = is_masking_supported(env) if isinstance(env, VecEnv) else env.has_wrapper_attr("action_masks")
    if masked and choices is None:
        warnings.warn(
            f"random actions ignore action masks of a {type(space).__name__}: they are over the bins of an agent's tokenizer",
            stacklevel=3,
        )
        masked = False

    def draw_many() -> NDArray[Any]:
        assert isinstance(env, VecEnv)
        masks = action_masks_of(env, choices) if masked else [None] * env.num_envs
        return np.array([_sample(space, mask) for mask in masks])

    def draw_one() -> Any:
        assert isinstance(env, gym.Env)
        mask = validate_masks([env.get_wrapper_attr("action_masks")()], choices, 1)[0] if masked else None
        return _sample(space, mask)

    return draw_many if isinstance(env, VecEnv) else draw_one


def random_observations(env: gym.Env[Any, Any] | VecEnv, steps: int = RANDOM_STEPS, seed: int = 0) -> Any:
    """
    Step an environment with random legal actions and return what it showed.

    With this a tokenizer can be fitted on an environment: ``tokenizer.fit(random_observations(env))``.

    :param env: a Gymnasium environment or an SB3 vector environment; it is reset first and left open
    :param steps: number of environment steps, over all environments of a vector environment
    :param seed: seed of the environment and of the actions
    :return: values of the observation space, R of them: one array, or a dict or tuple of arrays for a composite space
    :raises InputError: for an observation space that cannot be tokenized
    """
    env.action_space.seed(seed)
    space = bounded(env.observation_space)
    rows = _observe_vec_env(env, space, steps, seed) if isinstance(env, VecEnv) else _observe_env(env, space, steps, seed)
    return unflatten(space, rows)


def _observe_vec_env(env: VecEnv, space: spaces.Space[Any], steps: int, seed: int) -> NDArray[Any]:
    """Field values (R, F) of the observations of a vector environment; see :func:`random_observations`."""
    env.seed(seed)
    draw_actions = random_policy(env)
    observations = env.reset()
    rows = []
    for _ in range(steps // env.num_envs):
        rows.append(flatten(space, observations))
        observations = env.step(draw_actions())[0]
    return np.concatenate(rows)


def _observe_env(env: gym.Env[Any, Any], space: spaces.Space[Any], steps: int, seed: int) -> NDArray[Any]:
    """Field values (R, F) of the observations of one environment; see :func:`random_observations`."""
    draw_action = random_policy(env)
    observation, done = env.reset(seed=seed)[0], False
    rows = []
    for _ in range(steps):
        rows.append(flatten(space, observation))
        if done:
            observation, done = env.reset()[0], False
        else:
            observation, _, terminated, truncated, _ = env.step(draw_action())
            done = terminated or truncated
    return np.stack(rows)


def _sample(space: spaces.Space[Any], mask: NDArray[np.bool_] | None) -> Any:
    """
    Draw from an action space.

    :param mask: flags of one mask, in the layout of :mod:`dhmm_rl.tokens.action_masks`; every choice is legal when ``None``
    """
    if mask is None or not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return space.sample()
    legal = mask.astype(np.int8)
    if isinstance(space, spaces.Discrete):
        return space.sample(legal)
    if isinstance(space, spaces.MultiBinary):
        # Gymnasium's mask of a bit is its only legal value, or 2 where both are legal.
        off, on = np.moveaxis(legal.reshape(*space.shape, 2), -1, 0)
        return space.sample(np.where(off & on, 2, on).astype(np.int8))
    # Gymnasium's mask of a MultiDiscrete is a tuple of arrays, nested like the shape of the space.
    flags: list[Any] = np.split(legal, np.cumsum(space.nvec)[:-1])
    for width in reversed(space.shape[1:]):
        flags = [tuple(flags[i : i + width]) for i in range(0, len(flags), width)]
    return space.sample(tuple(flags))
