"""
The tiger problem: the smallest POMDP in which listening pays (Kaelbling, Littman and Cassandra 1998, "Planning and acting in
partially observable stochastic domains", section 5.1).
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LISTEN, OPEN_LEFT, OPEN_RIGHT = range(3)
HEAR_LEFT, HEAR_RIGHT, NOTHING_HEARD = range(3)


class Tiger(gym.Env[np.int64, np.int64]):
    """
    A tiger is behind one of two doors, and a reward is behind the other.

    There are three actions: listen, open the left door, and open the right door. Listening costs 1; the tiger is heard on its
    side with probability ``accuracy``. Opening a door gives -100 for the tiger and +10 for the reward. Then the tiger is placed
    at random again, and the observation of that step carries no information. Episodes do not terminate; the registered
    environment truncates them after 100 steps.

    :param accuracy: probability of hearing the tiger where it is
    """

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(3)

    def __init__(self, accuracy: float = 0.85) -> None:
        self.accuracy = accuracy
        self.tiger = HEAR_LEFT

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        """Place the tiger at random."""
        super().reset(seed=seed)
        self.tiger = int(self.np_random.integers(2))
        return np.int64(NOTHING_HEARD), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Listen or open a door."""
        if action == LISTEN:
            truthful = self.np_random.random() < self.accuracy
            return np.int64(self.tiger if truthful else 1 - self.tiger), -1.0, False, False, {}
        opened = HEAR_LEFT if action == OPEN_LEFT else HEAR_RIGHT
        reward = -100.0 if opened == self.tiger else 10.0
        self.tiger = int(self.np_random.integers(2))
        return np.int64(self.np_random.integers(2)), reward, False, False, {}


def tiger_beliefs(actions: NDArray[np.int64], observations: NDArray[np.int64], accuracy: float = 0.85) -> NDArray[np.float64]:
    """
    Compute the exact belief: the probability that the tiger is on the left, after each step of an episode.

    :param actions: actions that led to the observations, (T,); the first one is ignored
    :param observations: observations, beginning with the first one of the episode, (T,)
    :param accuracy: probability of hearing the tiger where it is
    :return: probabilities, (T,)
    """
    odds = np.log(accuracy / (1 - accuracy))
    log_odds, beliefs = 0.0, []
    for action, heard in zip(actions, observations, strict=True):
        if heard == NOTHING_HEARD or action != LISTEN:
            log_odds = 0.0
        else:
            log_odds += odds if heard == HEAR_LEFT else -odds
        beliefs.append(1 / (1 + np.exp(-log_odds)))
    return np.array(beliefs)


def tiger_values(gamma: float, accuracy: float = 0.85, horizon: int = 40) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """
    Compute the optimal discounted returns and actions by value iteration.

    A belief is an integer n: the number of times that the tiger was heard on the left, minus the number of times that it was
    heard on the right, since a door was opened.

    :param gamma: discount factor
    :param accuracy: probability of hearing the tiger where it is
    :param horizon: largest absolute value of n; listening gains nothing beyond it
    :return: values and actions for n = -horizon, …, horizon, each (2 · horizon + 1,)
    """
    n = np.arange(-horizon, horizon + 1)
    left = 1 / (1 + ((1 - accuracy) / accuracy) ** n.astype(float))
    hear_left = accuracy * left + (1 - accuracy) * (1 - left)
    values = np.zeros(len(n))
    while True:
        neighbors = np.concatenate([values[:1], values, values[-1:]])
        after_opening = gamma * values[horizon]
        choices = np.stack(
            [
                -1 + gamma * (hear_left * neighbors[2:] + (1 - hear_left) * neighbors[:-2]),
                -100 * left + 10 * (1 - left) + after_opening,
                10 * left - 100 * (1 - left) + after_opening,
            ]
        )
        improved = choices.max(axis=0)
        if np.abs(improved - values).max() < 1e-10:
            return improved, choices.argmax(axis=0)
        values = improved
