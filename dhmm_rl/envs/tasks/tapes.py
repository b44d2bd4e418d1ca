"""
The tape tasks once in OpenAI Gym's algorithmic set ("Learning simple algorithms from examples", Zaremba et al. 2016,
arXiv 1511.07275), which Gymnasium no longer has.

What is theirs: tapes, actions, rewards, time limits, the growing lengths and the thresholds, as in openai/gym 0.18,
``gym/envs/algorithmic`` and ``gym/envs/__init__.py``. What is not: the code, the action space (MultiDiscrete instead of a tuple
of Discretes), and that a time limit of a wrapper truncates.
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
MOST = 30
"""The shortest tape stops growing here."""


class TapeTask(gym.Env[np.int64, NDArray[np.int64]]):
    """
    A head reads a tape of symbols, one at a time; a function of what is on it is to be written.

    Actions: where the head moves (left, right; on a tape of several rows up and down, too), whether to write, what to write.
    What is written is judged before the head moves. Seen is the symbol under the head, ``base`` beside the tape. A correct
    symbol is worth 1; a wrong one costs 0.5 and ends the episode, as does the last correct one; after as many steps as tape and
    target are long together, and 4, the next one costs 1 and ends it, too.

    Tapes are of a random length, ``min_length`` to ``min_length`` + 2. Whenever the last ``episodes`` episodes all came to
    within ``shortfall`` of the most that they were worth, ``min_length`` grows by 1, up to 30. So what an agent can get depends
    on what it got before, and the thresholds lie far above the return of first episodes.

    :param base: how many symbols there are
    :param rows: of the tape
    :param min_length: the shortest tape in the beginning
    :param mixed: lengths from 1 to ``min_length`` + 2 instead, so that who learns here does not forget how to do short tapes;
        not in the original
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
        """How often the head came to stand beside the tape."""
        self._return: float | None = None
        self._shortfalls: list[float] = []

    def make_tape(self, length: int) -> NDArray[np.int64]:
        """A random tape, (length, rows)."""
        return self.np_random.integers(self.base, size=(length, self.rows))

    @abstractmethod
    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """What is to be written for a tape (length, rows)."""

    @abstractmethod
    def oracle(self) -> NDArray[np.int64]:
        """The action of one who solves the task, and knows no more than what was seen in this episode."""

    @property
    def time_limit(self) -> int:
        """As many steps are free."""
        return len(self.tape) + len(self.target) + 4

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        """Begin a new tape at its left upper end."""
        super().reset(seed=seed)
        self._grow()
        longest = self.min_length + 2
        self.tape = self.make_tape(int(self.np_random.integers(1 if self.mixed else self.min_length, longest + 1)))
        self.target = self.make_target(self.tape)
        self.head, self.written, self.steps, self.ends, self._return = (0, 0), 0, 0, 0, None
        return self._seen(), {"min_length": self.min_length}

    def step(self, action: NDArray[np.int64]) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Write or not, then move."""
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
        """Go to and fro between the ends of the tape, and write what is seen, or not."""
        writes = writes and self._inside
        return np.array([LEFT if self.ends % 2 else RIGHT, int(writes), self._seen() if writes else 0])

    def _grow(self) -> None:
        """Let tapes grow if the episodes that ended were good."""
        if self._return is None:
            return
        self._shortfalls = [*self._shortfalls, len(self.target) - self._return][-self.episodes :]
        if len(self._shortfalls) == self.episodes and max(self._shortfalls) <= self.shortfall and self.min_length < MOST:
            self.min_length += 1
            self._shortfalls = []


class Copy(TapeTask):
    """Copy the tape."""

    def __init__(self, base: int = 5, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """The tape."""
        return [int(symbol) for symbol in tape[:, 0]]

    def oracle(self) -> NDArray[np.int64]:
        """Write what is seen, and go on."""
        return self._sweep(writes=True)


class DuplicatedInput(TapeTask):
    """Every symbol stands on the tape twice; copy it once."""

    def __init__(self, base: int = 5, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_tape(self, length: int) -> NDArray[np.int64]:
        """Pairs; an odd length is rounded down."""
        return np.repeat(super().make_tape(max(length // 2, 1)), 2, axis=0)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """One of each pair."""
        return [int(symbol) for symbol in tape[::2, 0]]

    def oracle(self) -> NDArray[np.int64]:
        """Write every other symbol."""
        return self._sweep(writes=self.head[0] % 2 == 0)


class RepeatCopy(TapeTask):
    """Copy the tape, then write it backwards, then copy it again."""

    episodes = 50
    shortfall = 0.1

    def __init__(self, base: int = 5, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """The tape three times, the second time backwards."""
        symbols = tape[:, 0].tolist()
        return [*symbols, *reversed(symbols), *symbols]

    def oracle(self) -> NDArray[np.int64]:
        """Write what is seen, and turn round at the ends."""
        return self._sweep(writes=True)


class Reverse(TapeTask):
    """Write the tape backwards."""

    episodes = 50
    shortfall = 0.1

    def __init__(self, base: int = 2, min_length: int = 1, mixed: bool = False) -> None:
        super().__init__(base, min_length=min_length, mixed=mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """The tape backwards."""
        return [int(symbol) for symbol in tape[::-1, 0]]

    def oracle(self) -> NDArray[np.int64]:
        """Write on the way back."""
        return self._sweep(writes=self.ends > 0)


class ReversedAddition(TapeTask):
    """
    Add the numbers that stand in the tape's rows, in base 3, the lowest digit first.

    The time limit is the original's, which does not count a last carry. With 3 rows it is too short for tapes of more than 4
    columns, since every digit must be read: 3 steps a column, of which it grants 2 and 4 in all. So the threshold of 25 cannot
    be reached; a comment in the original says so, too.
    """

    def __init__(self, rows: int = 2, base: int = 3, min_length: int = 2, mixed: bool = False) -> None:
        super().__init__(base, rows, min_length, mixed)

    def make_target(self, tape: NDArray[np.int64]) -> list[int]:
        """The digits of the sum."""
        carry, digits = 0, []
        for column in tape.tolist():
            carry, digit = divmod(sum(column) + carry, self.base)
            digits.append(digit)
        return [*digits, carry] if carry else digits

    def oracle(self) -> NDArray[np.int64]:
        """Read each column, downwards and upwards in turn, and write its digit where it ends."""
        across, down = self.head
        downwards = across % 2 == 0
        if self._inside and down != (self.rows - 1 if downwards else 0):
            return np.array([DOWN if downwards else UP, 0, 0])
        return np.array([RIGHT, 1, self.target[self.written]])

    @property
    def time_limit(self) -> int:
        """As many steps are free."""
        return 2 * len(self.tape) + 4
