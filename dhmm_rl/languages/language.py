"""
What a token language is: instances of a problem, their traces in readable tokens, and a machine that executes traces.

Shapes: T tokens read, P axes of position ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens import PAD_ID
from dhmm_rl.validation import describe_type, matches_type

Instance = TypeVar("Instance")

Coupling = Literal["relative", "learned", "none"]


class IllegalTrace(InputError):
    """
    A trace that cannot be executed.

    :param place: of the first illegal token, counted from 0; the trace's length when it stops too early
    :param token: that token; empty when the trace stops too early
    :param reason: why it is illegal
    """

    def __init__(self, place: int, token: str, reason: str) -> None:
        what = f"{token!r} at place {place}" if token else f"the end at place {place}"
        super().__init__(f"{what} is illegal: {reason}")
        self.place, self.token, self.reason = place, token, reason


class Verdict(NamedTuple):
    """
    What executing a trace came to.

    :param solved: it was legal to its end and its result is right
    :param result: of the execution; ``None`` when the trace is illegal
    :param illegal: the first illegal token, if there is one
    :param text: the verdict in words
    """

    solved: bool
    result: Any
    illegal: IllegalTrace | None
    text: str


class Sentence(NamedTuple):
    """
    An instance as a model reads it.

    :param ids: of the tokens that are read, T of them
    :param labels: what is to be predicted after each; -1 where that is given, T of them
    :param positions: position ids, (T, P)
    """

    ids: list[int]
    labels: list[int]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Language(ABC, Generic[Instance]):
    """
    A family of problems of growing size, written as tokens.

    An instance is given as its *prompt*; its *trace* is what a model must produce, and the only thing that it learns. As a
    rule the trace continues the prompt. In a language that *transduces*, trace and prompt are equally long and ``trace[t]``
    answers ``prompt[: t + 1]``.

    A language of your own says what its tokens are and how an instance is drawn, written, read and executed.
    """

    sizes: tuple[int, int] = (1, 10)
    """The smallest and the largest size in training."""
    growth: float = 0.0
    """Over this share of the training the largest size grows, from the smallest on, with the square of the time; 0 trains on
    all sizes from the start."""
    coupling: Coupling = "relative"
    """How a model is told the language's own position ids, where it has such: ``relative``, by their differences, and attention
    sees no further than the language's ``reach``; ``learned``, as learned positions, in training from a random offset on
    (position coupling, arXiv 2405.20671); or ``none``, positions are counted."""
    max_position: int = 64
    """Learned positions lie below this number."""

    transduces: ClassVar[bool] = False
    """Whether ``trace[t]`` answers ``prompt[: t + 1]`` rather than continuing the prompt."""
    deterministic: ClassVar[bool] = True
    """Whether an instance has one trace, which a model can learn without error."""
    coupled: ClassVar[bool] = False
    """Whether tokens share position ids, so that those of a trace go no further than the prompt's."""
    end: ClassVar[str | None] = None
    """The token after which nothing follows; ``None`` where there is no such."""

    def __post_init__(self) -> None:
        if not 1 <= self.sizes[0] <= self.sizes[1]:
            raise InputError(f"sizes are {self.sizes[0]} to {self.sizes[1]}; they must rise from at least 1")
        if not 0 <= self.growth <= 1:
            raise InputError(f"growth is {self.growth}; it is a share of the training between 0 and 1")
        if self.max_position < 1:
            raise InputError(f"max_position is {self.max_position}; it must be at least 1")
        hints = get_type_hints(type(self))
        for name in (field.name for field in fields(self)):
            if get_origin(hints[name]) is Literal and not matches_type(getattr(self, name), hints[name]):
                raise InputError(f"{name} is {getattr(self, name)!r}; it is {describe_type(hints[name])}")

    @property
    def model(self) -> dict[str, Any]:
        """Keywords of DHMMGPT2 that suit this language where none are given."""
        return {}

    @property
    def training(self) -> dict[str, Any]:
        """Fields of TrainingSettings that suit this language where none are given."""
        return {}

    @property
    def reach(self) -> tuple[int, ...]:
        """
        How far apart, on each axis of the position ids, tokens lie that depend on each other.

        Empty in a language that counts its positions.
        """
        return ()

    # What a language says

    @property
    @abstractmethod
    def tokens(self) -> tuple[str, ...]:
        """The alphabet: every token once, without blanks in it. A token's id is its place."""

    @abstractmethod
    def instance(self, size: int, rng: np.random.Generator) -> Instance:
        """Draw an instance."""

    @abstractmethod
    def prompt(self, instance: Instance) -> list[str]:
        """The tokens that are given; at least one."""

    @abstractmethod
    def trace(self, instance: Instance) -> list[str]:
        """The tokens that a model must produce; in a language that is not deterministic, those that were drawn."""

    @abstractmethod
    def parse(self, text: str) -> Instance:
        """
        The instance that a text names: the prompt's tokens between blanks, or what a person would type.

        :raises InputError: when it names none
        """

    @abstractmethod
    def execute(self, instance: Instance, trace: Sequence[str]) -> Any:
        """
        Perform a trace.

        :return: what it comes to
        :raises IllegalTrace: naming the first token that cannot be performed
        """

    def answer(self, instance: Instance) -> Any:
        """What a right trace comes to, found in another way; ``None`` where every legal trace is right."""
        return None

    def positions(self, tokens: Sequence[str]) -> Sequence[Any]:
        """
        Position ids of tokens read so far; in a prompt they may depend on all of it, later on earlier ones only.

        :return: for each token a number, or P numbers
        """
        return range(len(tokens))

    def lines(self, trace: Sequence[str]) -> list[str]:
        """A trace as people read it."""
        return [" ".join(trace)]

    def longest(self, size: int) -> int:
        """How many tokens the longest sentence of a size has; unless overridden, the longest of 200 drawn ones."""
        rng = np.random.default_rng(size)
        return max(len(self.sentence(self.instance(size, rng)).ids) for _ in range(200))

    # What follows from it

    @property
    def relative(self) -> bool:
        """Whether a model is told position ids of the language's own by their differences."""
        return self.coupling == "relative" and bool(self.reach)

    def position_ids(self, tokens: Sequence[str]) -> NDArray[np.int64]:
        """
        The position ids that a model gets for tokens read so far, (T, P): the language's own, or counted ones.

        Learned ones are those of the last axis.
        """
        if not self.relative and self.coupling != "learned":
            return np.arange(len(tokens))[:, None]
        found = np.array(self.positions(tokens), dtype=np.int64).reshape(len(tokens), -1)
        return found if self.relative else found[:, -1:]

    def offset(self, prompt: Sequence[str]) -> int:
        """
        What is added to learned position ids when an instance is solved; in training it is random.

        Coupled ids are moved to the middle of what there is: training meets those in every column, while the first and the
        last ids stand at an end of their sentences whenever it does.
        """
        if self.coupling != "learned" or not self.coupled:
            return 0
        return max(self.max_position - 1 - int(self.position_ids(prompt).max()), 0) // 2

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: id_ for id_, token in enumerate(self.tokens)}

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """
        Ids of tokens.

        :raises InputError: for a token that the alphabet does not have
        """
        ids = self.ids
        try:
            return [ids[token] for token in tokens]
        except KeyError as error:
            raise InputError(f"{error.args[0]!r} is no token of this language; known are {_listed(self.tokens)}") from error

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Tokens of ids; nothing for -1."""
        return [self.tokens[id_] for id_ in ids if id_ >= 0]

    def sentence(self, instance: Instance) -> Sentence:
        """The instance with its trace, as a model reads and learns it."""
        prompt, trace = self.prompt(instance), self.trace(instance)
        if self.transduces:
            tokens, labels = prompt, self.encode(trace)
        else:
            tokens, labels = prompt + trace[:-1], [PAD_ID] * (len(prompt) - 1) + self.encode(trace)
        return Sentence(self.encode(tokens), labels, self.position_ids(tokens))

    def check(self, instance: Instance, trace: Sequence[str]) -> Verdict:
        """Execute a trace and compare what it comes to with the right answer."""
        try:
            result = self.execute(instance, trace)
        except IllegalTrace as illegal:
            return Verdict(False, None, illegal, f"illegal: {illegal}")
        right = self.answer(instance)
        if right is None:
            return Verdict(True, result, None, "legal")
        if result != right:
            return Verdict(False, result, None, f"wrong: it comes to {_show(result)}, {_show(right)} is right")
        return Verdict(True, result, None, f"solved: {_show(result)}")


class TraceReader:
    """
    Reads a trace token by token, and knows where it is.

    :param trace: the tokens
    """

    def __init__(self, trace: Sequence[str]) -> None:
        self.trace, self.place = trace, 0

    def take(self, wanted: str | Collection[str], reason: str) -> str:
        """
        The next token.

        :param wanted: what it may be: one token or several
        :param reason: why nothing else is legal
        :raises IllegalTrace: when it is something else, or there is none
        """
        token = self.trace[self.place] if self.place < len(self.trace) else ""
        if token not in ([wanted] if isinstance(wanted, str) else wanted):
            raise IllegalTrace(self.place, token, reason)
        self.place += 1
        return token

    def refuse(self, reason: str) -> IllegalTrace:
        """The error that names the token taken last."""
        return IllegalTrace(self.place - 1, self.trace[self.place - 1], reason)

    def finish(self) -> None:
        """:raises IllegalTrace: when something follows"""
        if self.place < len(self.trace):
            raise IllegalTrace(self.place, self.trace[self.place], "nothing may follow")


def _show(result: Any) -> str:
    """A result as people write it."""
    return " ".join(map(str, result)) if isinstance(result, tuple | list) else str(result)


def whole_numbers(text: str, what: str, count: int | None = None) -> tuple[int, ...]:
    """
    The numbers in a text such as ``3 1 2`` or ``3, 1, 2``.

    :param what: they are, for the error
    :param count: how many there must be; any number but 0 when ``None``
    :raises InputError: when there are none, not so many, or something else
    """
    parts = text.replace(",", " ").split()
    enough = bool(parts) if count is None else len(parts) == count
    if not enough or not all(part.isascii() and part.isdigit() for part in parts):
        example = "3 1 2" if count is None else " ".join(str(number) for number in range(3, 3 + count))
        raise InputError(f"{text!r} is not {what}: give whole numbers with blanks between them, such as {example}")
    return tuple(map(int, parts))


def _listed(tokens: Sequence[str]) -> str:
    return " ".join(tokens[:24]) + (" …" if len(tokens) > 24 else "")
