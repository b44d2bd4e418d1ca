"""
Finite automata as languages: the model reads input tokens and predicts the state of the automaton after each one.

The state is the label at the position of its input (``transduces``), and is never read. If inputs and states were written
alternately, the previous state would be right before each input, and nothing would have to be remembered.

Tokens of inputs and of states are disjoint, even if both are the elements of a group. The latent layer has one emission table
for its evidence and for its predictions, and reading the input ``213`` must not be evidence for the state ``=213``.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, Literal

import numpy as np

from dhmm_rl.errors import InputError
from dhmm_rl.languages.language import IllegalTrace, Language

Word = tuple[int, ...]

SPARE_STATES = 4
"""Number of latent states per state of an automaton."""
MIN_STATES = 16
"""Smallest number of latent states."""


@dataclass(frozen=True)
class Automaton(Language[Word]):
    """
    Base class of the languages of automata.

    The size is the number of inputs. Each input is uniform among those that are allowed in the current state.
    """

    sizes: tuple[int, int] = (4, 40)
    """The smallest and the largest size in training. Long sequences alone teach little, because the predicted state is wrong
    after their first tokens. Sequences of single inputs would make the model too certain to learn those of two."""
    growth: float = 0.8

    transduces = True

    @property
    def model(self) -> dict[str, Any]:
        """
        The latent layer alone, with one transition matrix per input, and one for an unknown next input.

        There are more latent states than states of the automaton, several for each token, so that training need not first
        decide which latent state stands for which token. Inputs are not evidence (``evidence_floor`` 0). The dither is small
        enough that the belief lasts for hundreds of tokens. The learning rate is high: the uncertainty of a transition adds up
        over the tokens, and only large logits make it small.
        """
        states = max(SPARE_STATES * len(self.states), MIN_STATES)
        latent = {"num_states": states, "matrices": len(self.inputs) + 1, "dither": 1e-6, "evidence_floor": 0.0}
        return latent | {"layers": 0, "latent_init": "automaton", "latent_rate": 30.0}

    @property
    def training(self) -> dict[str, Any]:
        """Training is long enough to meet every row of the transition table often."""
        large = len(self.inputs) * len(self.states) > 1000
        return {"steps": 1000, "batch_size": 256} if large else {"steps": 1500}

    @cached_property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Tokens of the inputs."""

    @cached_property
    @abstractmethod
    def states(self) -> tuple[str, ...]:
        """Tokens of the states. The first one is the initial state."""

    @cached_property
    @abstractmethod
    def table(self) -> list[list[int]]:
        """Transition table: the state after state s and input i is ``table[s][i]``, −1 where i is not allowed."""

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Inputs, then states."""
        return (*self.inputs, *self.states)

    def instance(self, size: int, rng: np.random.Generator) -> Word:
        """Draw ``size`` inputs."""
        draws = rng.random(size).tolist()
        state, word = 0, []
        for draw in draws:
            legal = self._legal[state]
            word.append(legal[int(draw * len(legal))])
            state = self.table[state][word[-1]]
        return tuple(word)

    @cached_property
    def _legal(self) -> list[list[int]]:
        """Inputs that are allowed in each state."""
        return [[i for i, after in enumerate(row) if after >= 0] for row in self.table]

    def prompt(self, instance: Word) -> list[str]:
        """Return the inputs."""
        return [self.inputs[i] for i in instance]

    def trace(self, instance: Word) -> list[str]:
        """Return the state after each input."""
        state, written = 0, []
        for i in instance:
            state = self.table[state][i]
            written.append(self.states[state])
        return written

    def parse(self, text: str) -> Word:
        """Parse inputs separated by spaces."""
        word = []
        state = 0
        for place, token in enumerate(text.split()):
            if token not in self.inputs:
                raise InputError(f"{token!r} is not an input of this automaton; inputs are {' '.join(self.inputs)}")
            word.append(self.inputs.index(token))
            if self.table[state][word[-1]] < 0:
                raise InputError(f"{token!r} at place {place} is not allowed in the state {self.states[state]}")
            state = self.table[state][word[-1]]
        if not word:
            raise InputError("there must be at least one input")
        return tuple(word)

    def execute(self, instance: Word, trace: Sequence[str]) -> str:
        """
        Run the automaton and compare its states with the trace.

        :return: the last state
        :raises IllegalTrace: for the first wrong state
        """
        states = self.trace(instance)
        for place, (token, state) in enumerate(zip(trace, states, strict=False)):
            if token != state:
                raise IllegalTrace(place, token, f"the state is {state} here")
        if len(trace) != len(states):
            place = min(len(trace), len(states))
            token = trace[place] if place < len(trace) else ""
            raise IllegalTrace(place, token, f"there are {len(states)} inputs, and as many states")
        return trace[-1]

    def answer(self, instance: Word) -> str:
        """Return the last state."""
        return self.trace(instance)[-1]


@dataclass(frozen=True)
class Counting(Automaton):
    """Counting the ones among zeros and ones, modulo n."""

    n: int = 5
    """The modulus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 2:
            raise InputError(f"n is {self.n}; it must be at least 2")

    inputs = ("0", "1")

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Values of the count."""
        return tuple(f"={count}" for count in range(self.n))

    @cached_property
    def table(self) -> list[list[int]]:
        """A one increases the count."""
        return [[count, (count + 1) % self.n] for count in range(self.n)]


@dataclass(frozen=True)
class Parity(Counting):
    """Parity of the number of ones so far: counting modulo 2."""

    n: int = 2
    """The modulus."""

    states = ("even", "odd")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n != 2:
            raise InputError(f"parity counts modulo 2, not {self.n}; counting takes any n")


@dataclass(frozen=True)
class WordProblem(Automaton):
    """
    The word problem of a permutation group: the product of the elements so far (Merrill, Petty and Sabharwal 2024, "The
    illusion of state in state-space models"). For A5 it is complete for NC¹. Transformers of fixed depth are believed not to
    solve such problems.

    An element is written as the images of 1, 2, 3, …. The state after input x is "first the state, then x".
    """

    group: Literal["S3", "A4", "A5"] = "S3"
    """All permutations of 3 things, or the even ones of 4 or 5: 6, 12 or 60 elements."""

    @cached_property
    def elements(self) -> list[tuple[int, ...]]:
        """Permutations of the group. The first one is the identity."""
        degree = int(self.group[1])
        return [p for p in permutations(range(degree)) if self.group[0] == "S" or _is_even(p)]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """All elements."""
        return tuple("".join(str(image + 1) for image in element) for element in self.elements)

    @cached_property
    def states(self) -> tuple[str, ...]:
        """All elements."""
        return tuple(f"={name}" for name in self.inputs)

    @cached_property
    def table(self) -> list[list[int]]:
        """Multiplication table of the group."""
        numbers = {element: number for number, element in enumerate(self.elements)}
        return [[numbers[tuple(x[image] for image in state)] for x in self.elements] for state in self.elements]


@dataclass(frozen=True)
class Dyck(Automaton):
    """Dyck-1 with bounded depth: the number of open brackets. It never falls below 0 or rises above the depth."""

    depth: int = 8
    """Largest number of brackets that are open at the same time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 1:
            raise InputError(f"depth is {self.depth}; it must be at least 1")

    inputs = ("(", ")")

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Numbers of open brackets."""
        return tuple(f"={depth}" for depth in range(self.depth + 1))

    @cached_property
    def table(self) -> list[list[int]]:
        """An opening bracket increases the depth, a closing one decreases it."""
        return [[depth + 1 if depth < self.depth else -1, depth - 1] for depth in range(self.depth + 1)]


def _is_even(permutation: tuple[int, ...]) -> bool:
    inversions = sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :])
    return inversions % 2 == 0
