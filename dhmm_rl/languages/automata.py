"""
Finite automata as languages: a token comes in, the running state is to be told after every one.

The running state is the label at the token's own position (``transduces``), and is never read: were inputs and states written
alternately, the state before would stand right beside each token, and nothing would have to be remembered. Tokens of inputs
and of states are disjoint, although the elements of a group are both: the latent layer's evidence for what it reads and its
prediction of what follows share one emission table, and reading ``213`` says nothing of the state ``=213``.
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
"""Latent states for every state of an automaton."""
FEWEST_STATES = 16


@dataclass(frozen=True)
class Automaton(Language[Word]):
    """
    What the languages of automata have in common.

    Size: how many tokens come in, each uniform among those that may.
    """

    sizes: tuple[int, int] = (4, 40)
    """The smallest and the largest size in training. Long sequences alone hardly teach, since the state is wrong after their
    first tokens; and who has become certain of single tokens' states finds it hard to learn those of two."""
    growth: float = 0.8

    transduces = True

    @property
    def model(self) -> dict[str, Any]:
        """
        The latent layer alone, with a transition matrix for every input, and one for where the next input is not known.

        More latent states than the automaton has, some for every token: which one a state tells then need not be agreed upon
        first. What comes in is no evidence. So little dither that the belief outlasts hundreds of tokens. Fast learning: what
        is left of a transition's uncertainty adds up over the tokens, and only large logits are sure.
        """
        states = max(SPARE_STATES * len(self.states), FEWEST_STATES)
        latent = {"num_states": states, "matrices": len(self.inputs) + 1, "dither": 1e-6, "evidence_floor": 0.0}
        return latent | {"layers": 0, "latent_init": "automaton", "latent_rate": 30.0}

    @property
    def training(self) -> dict[str, Any]:
        """So much that every row of the table is met often."""
        large = len(self.inputs) * len(self.states) > 1000
        return {"steps": 1000, "batch_size": 256} if large else {"steps": 1500}

    @cached_property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """The tokens that come in."""

    @cached_property
    @abstractmethod
    def states(self) -> tuple[str, ...]:
        """The tokens of the states; it begins in the first."""

    @cached_property
    @abstractmethod
    def table(self) -> list[list[int]]:
        """The state after state s and input i is ``table[s][i]``; -1 where i may not come."""

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Inputs, then states."""
        return (*self.inputs, *self.states)

    def instance(self, size: int, rng: np.random.Generator) -> Word:
        """``size`` inputs."""
        draws = rng.random(size).tolist()
        state, word = 0, []
        for draw in draws:
            legal = self._legal[state]
            word.append(legal[int(draw * len(legal))])
            state = self.table[state][word[-1]]
        return tuple(word)

    @cached_property
    def _legal(self) -> list[list[int]]:
        """The inputs that may come in each state."""
        return [[i for i, after in enumerate(row) if after >= 0] for row in self.table]

    def prompt(self, instance: Word) -> list[str]:
        """The inputs."""
        return [self.inputs[i] for i in instance]

    def trace(self, instance: Word) -> list[str]:
        """The state after each input."""
        state, written = 0, []
        for i in instance:
            state = self.table[state][i]
            written.append(self.states[state])
        return written

    def parse(self, text: str) -> Word:
        """Inputs with blanks between them."""
        word = []
        state = 0
        for place, token in enumerate(text.split()):
            if token not in self.inputs:
                raise InputError(f"{token!r} is no input of this automaton; they are {' '.join(self.inputs)}")
            word.append(self.inputs.index(token))
            if self.table[state][word[-1]] < 0:
                raise InputError(f"{token!r} at place {place} may not come in the state {self.states[state]}")
            state = self.table[state][word[-1]]
        if not word:
            raise InputError("there must be at least one input")
        return tuple(word)

    def execute(self, instance: Word, trace: Sequence[str]) -> str:
        """
        Run the automaton beside the trace.

        :return: the last state
        :raises IllegalTrace: for the first state that is not the automaton's
        """
        right = self.trace(instance)
        for place, (token, state) in enumerate(zip(trace, right, strict=False)):
            if token != state:
                raise IllegalTrace(place, token, f"the state is {state} here")
        if len(trace) != len(right):
            place = min(len(trace), len(right))
            token = trace[place] if place < len(trace) else ""
            raise IllegalTrace(place, token, f"there are {len(right)} inputs, and as many states")
        return trace[-1]

    def answer(self, instance: Word) -> str:
        """The last state."""
        return self.trace(instance)[-1]


@dataclass(frozen=True)
class Counting(Automaton):
    """Counts the ones among zeros and ones, modulo n."""

    n: int = 5
    """The modulus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 2:
            raise InputError(f"n is {self.n}; it must be at least 2")

    inputs = ("0", "1")

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The count."""
        return tuple(f"={count}" for count in range(self.n))

    @cached_property
    def table(self) -> list[list[int]]:
        """Ones count."""
        return [[count, (count + 1) % self.n] for count in range(self.n)]


@dataclass(frozen=True)
class Parity(Counting):
    """Whether the number of ones so far is even: counting modulo 2."""

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
    illusion of state in state-space models"). That of A5 is complete for NC¹, which transformers of fixed depth are not
    believed to reach.

    An element is written as the images of 1, 2, 3, …; the state after input x is "first the state, then x".
    """

    group: Literal["S3", "A4", "A5"] = "S3"
    """All permutations of 3 things, or the even ones of 4 or 5: 6, 12 or 60 elements."""

    @cached_property
    def elements(self) -> list[tuple[int, ...]]:
        """The permutations; the first changes nothing."""
        degree = int(self.group[1])
        return [p for p in permutations(range(degree)) if self.group[0] == "S" or _is_even(p)]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Every element."""
        return tuple("".join(str(image + 1) for image in element) for element in self.elements)

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Every element."""
        return tuple(f"={name}" for name in self.inputs)

    @cached_property
    def table(self) -> list[list[int]]:
        """The group's multiplication."""
        numbers = {element: number for number, element in enumerate(self.elements)}
        return [[numbers[tuple(x[image] for image in state)] for x in self.elements] for state in self.elements]


@dataclass(frozen=True)
class Dyck(Automaton):
    """Dyck-1 to a bounded depth: how many brackets are open; none closes that was not opened, none opens beyond the depth."""

    depth: int = 8
    """The most brackets that may be open at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 1:
            raise InputError(f"depth is {self.depth}; it must be at least 1")

    inputs = ("(", ")")

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The depth."""
        return tuple(f"={depth}" for depth in range(self.depth + 1))

    @cached_property
    def table(self) -> list[list[int]]:
        """Open and close."""
        return [[depth + 1 if depth < self.depth else -1, depth - 1] for depth in range(self.depth + 1)]


def _is_even(permutation: tuple[int, ...]) -> bool:
    inversions = sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :])
    return inversions % 2 == 0
