"""
The tape tasks of OpenAI Gym's algorithmic environments ("Learning simple algorithms from examples", Zaremba et al. 2016,
arXiv 1511.07275), which Gymnasium no longer includes.

Tapes, actions, rewards, time limits, growing lengths and thresholds are those of openai/gym 0.18 (``gym/envs/algorithmic`` and
``gym/envs/__init__.py``). The code is new. Two things differ: the action space is MultiDiscrete instead of a tuple of
Discretes, and the time limit of a wrapper truncates the episode.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LEFT, RIGHT, UP, DOWN = range(4)
MOVES = {LEFT: (-1, 0), RIGHT: (1, 0), UP: (0, -1), DOWN: (0, 1)}

CORRECT, WRONG, TOO_LATE = 1.0, -0.5, -1.0
MAX_MIN_LENGTH = 30
"""``min_length`` does not grow beyond this."""


class TapeTask(gym.Env[np.int64, NDArray[np.int64]]):
    """
    A head reads a tape, one symbol at a time. The agent must write a function of the tape, the target.

    An action has three parts: where the head moves (left or right; also up and down on a tape with several rows), whether to
    write, and which symbol to write. A symbol is written before the head moves. The observation is the symbol under the head,
    or ``base`` where the head is outside the tape.

    A correct symbol gives reward 1. A wrong symbol costs 0.5 and ends the episode; the last correct symbol ends it, too. When
    the number of steps exceeds the length of tape and target together by more than 4, the episode ends with reward -1.

    The length of a tape is random, from ``min_length`` to ``min_length`` + 2. When each of the last ``episodes`` returns was
    within ``shortfall`` of the largest possible one, ``min_length`` grows by 1, up to :data:`MAX_MIN_LENGTH`. The possible
    return therefore depends on earlier episodes, and the reward thresholds are far above the returns of the first episodes.

    :param base: number of symbols
    :param rows: number of rows of the tape
    :param min_length: initial minimum length of a tape
    :param mixed: draw lengths from 1 to ``min_length`` + 2 instead, so that an agent does not forget short tapes; not in the
        original
    """

    episodes: ClassVar[int] = 10
    shortfall: ClassVar[float] = 1.0

    def __init__(self, base: int, rows: int = 1, min_length: int = 2, mixed: bool = False) -> None:
        self.base, self.rows, self.min_length, self.mixed = base, rows, min_length, mixed
        self.action_space = spaces.MultiDiscrete([2 if rows == 1 else 4, 2, base])
        self.observation_space = spaces.Discrete(base + 1)
        self.tape = np.zeros((0, rows), dtype=np.int64)
        self.target: list[int] = []
        self.head, self.written, self.steps = (0, 0), 0, 0
        self.ends = 0
        """Number of times that the head moved off the tape."""
        self._return: float | None = None
        self._shortfalls: list[float] = []

    def make_tape(self, length: int) -> NDArray[np.int64]:
        """Draw a random tape, (length, rows)."""
        return self.np_random.integers(self.base, size=(length, self.rows))

    @abstractmethod
    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """Return the target of a tape (length, rows)."""

    @abstractmethod
    def oracle(self) -> NDArray[np.int64]:
        """Return the action of a policy that solves the task from what was seen in this episode."""

    @property
    def time_limit(self) -> int:
        """Number of steps after which the next one ends the episode."""
        return len(self.tape) + len(self.target) + 4

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        """Draw a new tape and place the head at its upper left end."""
        super().reset(seed=seed)
        self._grow()
        longest = self.min_length + 2
        self.tape = self.make_tape(int(self.np_random.integers(1 if self.mixed else self.min_length, longest + 1)))
        self.target = self.make_target(self.tape)
        self.head, self.written, self.steps, self.ends, self._return = (0, 0), 0, 0, 0, None
        return self._seen(), {"min_length": self.min_length}

    def step(self, action: NDArray[np.int64]) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Write a symbol if the action says so, then move the head."""
        move, writes, symbol = map(int, action)
        self.steps += 1
        reward, terminated = 0.0, False
        if writes:
            correct = symbol == self.target[self.written]
            self.written += 1
            reward = CORRECT if correct else WRONG
            terminated = not correct or self.written == len(self.target)
        across, down = MOVES[move]
        self.head = self.head[0] + across, self.head[1] + down
        self.ends += not self._inside
        if self.steps > self.time_limit:
            reward, terminated = TOO_LATE, True
        self._return = (self._return or 0.0) + reward
        return self._seen(), reward, terminated, False, {"min_length": self.min_length}

    @property
    def _inside(self) -> bool:
        across, down = self.head
        return 0 <= across < len(self.tape) and 0 <= down < self.rows

    def _seen(self) -> np.int64:
        return np.int64(self.tape[self.head] if self._inside else self.base)

    def _sweep(self, writes: bool) -> NDArray[np.int64]:
        """Return the action that moves to and fro between the ends of the tape, and writes the observed symbol if asked to."""
        writes = writes and self._inside
        return np.array([LEFT if self.ends % 2 else RIGHT, int(writes), self._seen() if writes else 0])

    def _grow(self) -> None:
        """Increase the minimum length if the last episodes were good enough."""
        if self._return is None:
            return
        self._shortfalls = [*self._shortfalls, len(self.target) - self._return][-self.episodes :]
        if (
            len(self._shortfalls) == self.episodes
            and max(self._shortfalls) <= self.shortfall
            and self.min_length < MAX_MIN_LENGTH
        ):
            self.min_length += 1
            self._shortfalls = []


class Copy(TapeTask):
    """Copy the tape."""

    def __init__(self, base: int = 5, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """Return the symbols of the tape."""
        return [int(symbol) for symbol in tape[:, 0]]

    def oracle(self) -> NDArray[np.int64]:
        """Write the observed symbol and move on."""
        return self._sweep(writes=True)


class DuplicatedInput(TapeTask):
    """Every symbol is on the tape twice; write it once."""

    def __init__(self, base: int = 5, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_tape(self, length: int) -> NDArray[np.int64]:
        """Draw a tape of pairs; an odd length is rounded down."""
        return np.repeat(super().make_tape(max(length // 2, 1)), 2, axis=0)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """Return one symbol of each pair."""
        return [int(symbol) for symbol in tape[::2, 0]]

    def oracle(self) -> NDArray[np.int64]:
        """Write every other symbol."""
        return self._sweep(writes=self.head[0] % 2 == 0)


class RepeatCopy(TapeTask):
    """Copy the tape, write it in reverse, and copy it again."""

    episodes = 50
    shortfall = 0.1

    def __init__(self, base: int = 5, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """Return the symbols three times, the second time in reverse."""
        symbols = tape[:, 0].tolist()
        return [*symbols, *reversed(symbols), *symbols]

    def oracle(self) -> NDArray[np.int64]:
        """Write the observed symbol, and turn around at the ends."""
        return self._sweep(writes=True)


class Reverse(TapeTask):
    """Write the tape in reverse."""

    episodes = 50
    shortfall = 0.1

    def __init__(self, base: int = 2, min_length: int = 1, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """Return the symbols in reverse."""
        return [int(symbol) for symbol in tape[::-1, 0]]

    def oracle(self) -> NDArray[np.int64]:
        """Write on the way back."""
        return self._sweep(writes=self.ends > 0)


class ReversedAddition(TapeTask):
    """
    Add the numbers in the rows of the tape, in base 3, lowest digit first.

    The time limit is that of the original, which does not count a last carry. With 3 rows it is too short for tapes of more
    than 4 columns: reading a column takes 3 steps, and the limit allows 2 steps per column and 4 more. The threshold of 25
    therefore cannot be reached, as a comment in the original says.
    """

    def __init__(self, rows: int = 2, base: int = 3, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, rows, min_length, mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """Return the digits of the sum."""
        carry, digits = 0, []
        for column in tape.tolist():
            carry, digit = divmod(sum(column) + carry, self.base)
            digits.append(digit)
        return [*digits, carry] if carry else digits

    def oracle(self) -> NDArray[np.int64]:
        """Read the columns downwards and upwards in turn, and write the digit at the end of each."""
        across, down = self.head
        downwards = across % 2 == 0
        if self._inside and down != (self.rows - 1 if downwards else 0):
            return np.array([DOWN if downwards else UP, 0, 0])
        return np.array([RIGHT, 1, self.target[self.written]])

    @property
    def time_limit(self) -> int:
        """Number of steps after which the next one ends the episode."""
        return 2 * len(self.tape) + 4
