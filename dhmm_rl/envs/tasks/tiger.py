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
    A tiger is behind one of two doors, a reward behind the other.

    Actions: listen (-1; the tiger is heard on its side with probability ``accuracy``), open the left door, open the right one
    (-100 for the tiger, +10 for the reward). After a door was opened the tiger is placed anew, and what is heard says nothing.
    It goes on for ever; the registered environment is cut off after 100 steps.

    :param accuracy: probability of hearing the tiger where it is
    """

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(3)

    def __init__(self, accuracy: float = 0.85) -> None:
        self.accuracy = accuracy
        self.tiger = HEAR_LEFT

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        """Place the tiger; nothing is heard as yet."""
        super().reset(seed=seed)
        self.tiger = int(self.np_random.integers(2))
        return np.int64(NOTHING_HEARD), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Listen, or open a door."""
        if action == LISTEN:
            truthful = self.np_random.random() < self.accuracy
            return np.int64(self.tiger if truthful else 1 - self.tiger), -1.0, False, False, {}
        opened = HEAR_LEFT if action == OPEN_LEFT else HEAR_RIGHT
        reward = -100.0 if opened == self.tiger else 10.0
        self.tiger = int(self.np_random.integers(2))
        return np.int64(self.np_random.integers(2)), reward, False, False, {}


def tiger_beliefs(actions: NDArray[np.int64], observations: NDArray[np.int64], accuracy: float = 0.85) -> NDArray[np.float64]:
    """
    The exact belief: the probability that the tiger is on the left, after each step of an episode.

    :param actions: that led to the observations, (T,); the first is not read
    :param observations: from the episode's first on, (T,)
    :return: (T,)
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
    The optimal discounted return and action, by value iteration.

    A belief is a whole number n: how much oftener the tiger was heard on the left than on the right since a door was opened.

    :param gamma: discount factor
    :param horizon: n is kept within ± horizon, beyond which listening gains nothing
    :return: values and actions for n = -horizon, …, horizon, (2 · horizon + 1,)
    """
    n = np.arange(-horizon, horizon + 1)
    left = 1 / (1 + ((1 - accuracy) / accuracy) ** n.astype(float))
    hear_left = accuracy * left + (1 - accuracy) * (1 - left)
    values = np.zeros(len(n))
    while True:
        after = np.concatenate([values[:1], values, values[-1:]])
        anew = gamma * values[horizon]
        choices = np.stack(
            [
                -1 + gamma * (hear_left * after[2:] + (1 - hear_left) * after[:-2]),
                -100 * left + 10 * (1 - left) + anew,
                10 * left - 100 * (1 - left) + anew,
            ]
        )
        improved = choices.max(axis=0)
        if np.abs(improved - values).max() < 1e-10:
            return improved, choices.argmax(axis=0)
        values = improved
