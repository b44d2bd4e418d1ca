"""Sorting as an environment: the operations of the sorting languages, on an array that shows only what is compared."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError


class SortEnv(gym.Env[NDArray[np.int64], np.int64]):
    """
    Sort an array by comparing and swapping neighbors, in as few operations as can be.

    With n = ``size``, action i < n - 1 is COMPARE i: it shows the numbers at places i and i + 1. Action n - 1 + i is SWAP i,
    which exchanges them; it works only straight after COMPARE i, so nothing is sorted by accident, and elsewhere does nothing.
    Seen are the two numbers that were just compared, ``values`` twice after anything else. Arrays are random, with duplicates,
    and not sorted to begin with.

    Every operation costs 1 / limit, limit = 2 n (n - 1), and the one that sorts the array is worth 1 and ends the episode; it
    is cut off after ``limit`` operations. The best return is 1 - 2 · inversions / limit, and 3/4 on average where there are no
    duplicates; it takes luck, since where the inversions are is not seen. Bubble sort needs at most half the limit.

    :param size: length of the array
    :param values: numbers are below this
    :raises InputError: for an array that cannot be out of order
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
        """The place compared last, whatever came after it, and how often comparisons went on further to the left."""
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Draw an array that is out of order."""
        super().reset(seed=seed)
        self.compared, self.last, self.sweeps, self.steps = None, -1, 0, 0
        while True:
            self.array = self.np_random.integers(self.values, size=self.size)
            if not self._sorted():
                return self._seen(), {"array": self.array.copy()}

    def step(self, action: np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        """Compare or swap."""
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
        The action of bubble sort, which knows no more than what was seen in this episode: passes from left to right, each one
        shorter than the one before.
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
