"""
Twin episodes: the same seeds with different actions show whether actions have consequences after the next reward.

Shapes: N environments, T steps.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.tokens import bounded
from dhmm_rl.tokens.fields import flatten

LENGTHS = (8, 512, 512, 512)
"""Largest number of steps of each pair of twins. The short first pair is enough for most environments."""
ENVIRONMENTS = 16
"""With fewer environments, each pair is played repeatedly, so that the answer does not depend on their number."""


class _Episodes(NamedTuple):
    """
    First episodes of N environments, with what does not belong to them left at 0.

    :param observations: field values of the observations, (T + 1, N, F)
    :param rewards: rewards, (T, N)
    :param ends: whether the episode ended with the step, (T, N)
    :param actions: actions, (T, N, ...)
    """

    observations: NDArray[Any]
    rewards: NDArray[Any]
    ends: NDArray[Any]
    actions: NDArray[Any]


def only_next_reward_depends_on_actions(env: VecEnv, seed: int = 0) -> bool:
    """
    Find out whether actions change nothing but the reward that follows at once, as in naming or counting what was seen.

    Every environment plays two episodes with the same seed and different actions. It returns true if the observations and
    the ends are the same in both, if the rewards are the same wherever the actions are, and if they sometimes differ where the
    actions do. Later rewards then say nothing about an action, and a discount factor of 0 loses nothing.

    An environment that does not repeat itself after ``reset(seed=...)``, or that has action masks, is taken for one with
    later consequences of actions.

    :param env: a vector environment; it is seeded and reset, and left in the middle of episodes
    :param seed: seed of the environments and the actions
    """
    if is_masking_supported(env):
        return False
    rewards_differ = False
    repetitions = math.ceil(ENVIRONMENTS / env.num_envs)
    for pair, steps in enumerate(length for length in LENGTHS for _ in range(repetitions)):
        first = _play(env, steps, seed + pair, None)
        second = _play(env, steps, seed + pair, first.actions)
        if not (np.array_equal(first.observations, second.observations) and np.array_equal(first.ends, second.ends)):
            return False
        same = (first.actions == second.actions).reshape(*first.rewards.shape, -1).all(axis=-1)
        if (first.rewards != second.rewards)[same].any():
            return False
        rewards_differ = rewards_differ or bool((first.rewards != second.rewards)[~same].any())
    return rewards_differ


def _play(env: VecEnv, steps: int, seed: int, twin: NDArray[Any] | None) -> _Episodes:
    """
    Play the first episode of every environment with random actions.

    :param env: the vector environment
    :param steps: largest number of steps
    :param seed: seed of the environments and the actions
    :param twin: actions of the twin episodes, (T, N, ...), about half of which are repeated; ``None`` for the first twin
    """
    space, rng = bounded(env.observation_space), np.random.default_rng(seed)
    env.action_space.seed(seed if twin is None else seed + 1)
    env.seed(seed)
    alive = np.ones(env.num_envs, dtype=np.bool_)
    observations = [flatten(space, env.reset())]
    rewards: list[NDArray[Any]] = []
    ends: list[NDArray[Any]] = []
    actions: list[NDArray[Any]] = []
    while len(rewards) < steps and alive.any():
        drawn = np.array([env.action_space.sample() for _ in range(env.num_envs)])
        if twin is not None and len(rewards) < len(twin):
            repeat = rng.random(env.num_envs) < 0.5
            drawn[repeat] = twin[len(rewards)][repeat]
        shown, reward, done, _ = env.step(drawn)
        ends.append(done & alive)
        rewards.append(np.where(alive, reward, 0.0))
        actions.append(drawn)
        alive = alive & ~done
        # After the end of an episode the observation is the first of the next one
        observations.append(np.where(alive[:, None], flatten(space, shown), 0))
    return _Episodes(*(np.array(part) for part in (observations, rewards, ends, actions)))
