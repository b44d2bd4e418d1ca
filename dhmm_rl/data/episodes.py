"""
One recorded episode, its checks, and lines about episodes that cannot be used.

Shapes: T environment steps of an episode.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.data.packing import is_packed
from dhmm_rl.errors import InputError

Notice = Callable[[str], None]
"""A function that is given one line of text for the user, such as ``print``."""


REWARD_SPACE = spaces.Box(-np.inf, np.inf, ())


class Episode(NamedTuple):
    """
    One recorded episode.

    :param observations: observations as :func:`pack` returns them, (T + 1, ...)
    :param actions: actions as :func:`pack` returns them, (T, ...)
    :param rewards: rewards, (T,)
    :param terminated: whether the episode reached a terminal state; otherwise it was cut off
    :param imitate: whether the actions are worth imitating
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.floating[Any]]
    terminated: bool
    imitate: bool


class Fault(NamedTuple):
    """
    The reason why an episode cannot be used.

    :param row: row of the rollouts in which it is
    :param reason: reason, which continues "in row …"
    """

    row: int
    reason: str


def check_episode(number: int, episode: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Episode:
    """
    Check one episode and return it with its parts as arrays.

    :param number: number of the episode, for errors
    :param episode: value to check, which may be anything
    :param observation_space: space of its observations
    :param action_space: space of its actions
    :raises InputError: for anything that is not an episode of these spaces
    """
    if not isinstance(episode, Episode):
        raise InputError(f"episode {number} is a {type(episode).__name__}; it must be a dhmm_rl.data.Episode")
    arrays = []
    for name, space, values in (
        ("observations", observation_space, episode.observations),
        ("actions", action_space, episode.actions),
        ("rewards", REWARD_SPACE, episode.rewards),
    ):
        try:
            array = np.asarray(values)
        except ValueError as error:  # rows of several lengths
            raise InputError(f"{name} of episode {number} do not make an array: {str(error).splitlines()[0]}") from error
        if array.ndim == 0 or not is_packed(space, array):
            raise InputError(
                f"{name} of episode {number} are {array.dtype} of shape {array.shape}; they must be as "
                f"dhmm_rl.data.packing.pack makes them of {' '.join(str(space).split()):.200}, one a row"
            )
        arrays.append(array)
    observations, actions, rewards = arrays
    if not len(observations) - 1 == len(actions) == len(rewards) > 0:
        raise InputError(
            f"episode {number} has {len(observations)} observations, {len(actions)} actions and {len(rewards)} rewards; an "
            "episode of T steps, 1 or more, has T + 1 observations, T actions and T rewards"
        )
    return Episode(observations, actions, rewards, episode.terminated, episode.imitate)


def report_skipped_episodes(name: str, reasons: Mapping[int, str], total: int, notice: Notice) -> None:
    """
    Give one line for each reason for which episodes are left out.

    :param name: name of the data
    :param reasons: reason by number of the episode
    :param total: number of episodes in the data
    :param notice: function that is given the lines
    :raises InputError: for data of which every episode is left out
    """
    if total and len(reasons) == total:
        raise InputError(f"no episode of {name} can be used: {reasons[min(reasons)]} in episode {min(reasons)}")
    for reason in dict.fromkeys(reasons.values()):
        numbers = [number for number, other in sorted(reasons.items()) if other == reason]
        listed = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        notice(f"note: {len(numbers)} of {total} episodes of {name} are left out ({listed}): {reason}")
