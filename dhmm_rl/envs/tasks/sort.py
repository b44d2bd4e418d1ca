"""Sorting as an environment: the operations of the sorting languages on an array of which only compared numbers are visible."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError


class SortEnv(gym.Env[NDArray[np.int64], np.int64]):
    """
    Sort an array by comparing and swapping neighbors, in as few operations as possible.

    With n = ``size``, action i < n - 1 is COMPARE i, which shows the numbers at positions i and i + 1. Action n - 1 + i is
    SWAP i, which exchanges them. SWAP i has an effect only directly after COMPARE i, so that nothing is sorted by accident.
    After a comparison, the observation is the two compared numbers; otherwise it is ``values`` twice. Arrays are random, may
    have duplicates, and are not sorted at the start.

    Every operation costs 1 / limit, with limit = 2 n (n - 1). The operation that sorts the array gives reward 1 and ends the
    episode; after ``limit`` operations it is truncated. The best return is 1 - 2 · inversions / limit, which is 3/4 on average
    without duplicates. It takes luck, because the positions of inversions are not visible. Bubble sort needs at most half
    the limit.

    :param size: length of the array
    :param values: number of different values; the numbers are smaller than this
    :raises InputError: for sizes with which an array is always sorted
    """

    def __init__(self, size: int = 5, values: int = 10) -> None:
        if size < 2 or values < 2:
            raise InputError(f"size is {size} and values {values}; both must be at least 2, or there is nothing to sort")
        self.size, self.values, self.limit = size, values, 2 * size * (size - 1)
        self.action_space = spaces.Discrete(2 * (size - 1))
        self.observation_space = spaces.MultiDiscrete([values + 1, values + 1])
        self.array = np.arange(size)
        self.compared: int | None = None
        self.last, self.sweeps = -1, 0
        """Position of the last comparison, and the number of comparisons that were not to the right of the one before."""
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Draw an array that is not sorted."""
        super().reset(seed=seed)
        self.compared, self.last, self.sweeps, self.steps = None, -1, 0, 0
        while True:
            self.array = self.np_random.integers(self.values, size=self.size)
            if not self._sorted():
                return self._seen(), {"array": self.array.copy()}

    def step(self, action: np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        """Compare or swap two neighbors."""
        self.steps += 1
        swaps, i = divmod(int(action), self.size - 1)
        if swaps and self.compared == i:
            self.array[[i, i + 1]] = self.array[[i + 1, i]]
        self.compared = None if swaps else i
        if not swaps:
            self.sweeps += i <= self.last
            self.last = i
        terminated = self._sorted()
        truncated = not terminated and self.steps >= self.limit
        reward = float(terminated) - 1 / self.limit
        return self._seen(), reward, terminated, truncated, {"array": self.array.copy()}

    def oracle(self) -> np.int64:
        """
        Return the action of bubble sort, which needs only what was seen in this episode.

        It makes passes from left to right, each of them one comparison shorter than the pass before it.
        """
        if self.compared is not None and self.array[self.compared] > self.array[self.compared + 1]:
            return np.int64(self.size - 1 + self.compared)
        pairs = self.size - 1 - self.sweeps % (self.size - 1)
        return np.int64((self.last + 1) % pairs)

    def _sorted(self) -> bool:
        return bool((self.array[:-1] <= self.array[1:]).all())

    def _seen(self) -> NDArray[np.int64]:
        if self.compared is None:
            return np.full(2, self.values)
        return self.array[self.compared : self.compared + 2].copy()
