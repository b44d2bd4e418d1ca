"""
The base class of token languages: instances of a problem, their traces as readable tokens, and an executor of traces.

Shapes: T tokens, P axes of position ids.
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

    :param place: index of the first illegal token; the length of the trace when it stops too early
    :param token: the illegal token; empty when the trace stops too early
    :param reason: reason why the token is illegal
    """

    def __init__(self, place: int, token: str, reason: str) -> None:
        what = f"{token!r} at place {place}" if token else f"the end at place {place}"
        super().__init__(f"{what} is illegal: {reason}")
        self.place, self.token, self.reason = place, token, reason


class Verdict(NamedTuple):
    """
    Result of executing a trace.

    :param solved: whether the whole trace is legal and its result is right
    :param result: result of the execution; ``None`` when the trace is illegal
    :param illegal: error that names the first illegal token; ``None`` when the trace is legal
    :param text: verdict in words
    """

    solved: bool
    result: Any
    illegal: IllegalTrace | None
    text: str


class Sentence(NamedTuple):
    """
    An instance with its trace in the form that a model reads and learns.

    :param ids: ids of the tokens, length T
    :param labels: id to predict after each token, length T; −1 where the next token is given
    :param positions: position ids, shape (T, P)
    """

    ids: list[int]
    labels: list[int]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Language(ABC, Generic[Instance]):
    """
    A family of problems of growing size, written as tokens.

    The *prompt* of an instance is given. Its *trace* is what a model must produce, and the only thing the model learns. Usually
    the trace continues the prompt. In a language that *transduces*, trace and prompt have the same length and ``trace[t]``
    answers ``prompt[: t + 1]``.

    Your own language defines its tokens and how an instance is drawn, written, parsed and executed.
    """

    sizes: tuple[int, int] = (1, 10)
    """The smallest and the largest size in training."""
    growth: float = 0.0
    """Curriculum: the largest size grows with the square of the training progress, until this fraction of the training is over.
    With 0, training uses all sizes from the start."""
    coupling: Coupling = "relative"
    """How the model uses the position ids of a language that defines its own. ``relative``: attention uses their differences
    and sees only tokens within the language's ``reach``. ``learned``: learned positions, with a random offset in training
    (position coupling, arXiv 2405.20671). ``none``: positions are counted instead."""
    max_position: int = 64
    """Number of learned positions."""

    transduces: ClassVar[bool] = False
    """Whether ``trace[t]`` answers ``prompt[: t + 1]`` rather than continuing the prompt."""
    deterministic: ClassVar[bool] = True
    """Whether an instance has exactly one trace, so that a model can learn it without error."""
    coupled: ClassVar[bool] = False
    """Whether tokens share position ids, so that the ids of a trace are not larger than those of the prompt."""
    end: ClassVar[str | None] = None
    """Last token of every trace; ``None`` when traces have no such token."""

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
        """Default keywords of DHMMGPT2 for this language."""
        return {}

    @property
    def training(self) -> dict[str, Any]:
        """Default fields of TrainingSettings for this language."""
        return {}

    @property
    def reach(self) -> tuple[int, ...]:
        """
        Largest distance between tokens that depend on each other, on each axis of the position ids.

        Empty for a language that counts its positions.
        """
        return ()

    # What a language defines

    @property
    @abstractmethod
    def tokens(self) -> tuple[str, ...]:
        """The alphabet: every token once. Tokens contain no spaces. The id of a token is its index."""

    @abstractmethod
    def instance(self, size: int, rng: np.random.Generator) -> Instance:
        """Draw an instance of a size."""

    @abstractmethod
    def prompt(self, instance: Instance) -> list[str]:
        """Return the given tokens; at least one."""

    @abstractmethod
    def trace(self, instance: Instance) -> list[str]:
        """Return the tokens that a model must produce; in a language that is not deterministic, the tokens that were drawn."""

    @abstractmethod
    def parse(self, text: str) -> Instance:
        """
        Parse an instance: the tokens of the prompt separated by spaces, or what a person would type.

        :raises InputError: when the text is not an instance
        """

    @abstractmethod
    def execute(self, instance: Instance, trace: Sequence[str]) -> Any:
        """
        Execute a trace.

        :return: result of the execution
        :raises IllegalTrace: for the first token that cannot be executed
        """

    def answer(self, instance: Instance) -> Any:
        """Return the right result, computed in another way; ``None`` when every legal trace is right."""
        return None

    def positions(self, tokens: Sequence[str]) -> Sequence[Any]:
        """
        Return the position ids of the tokens so far.

        The ids in the prompt may depend on the whole prompt. Later ids depend on earlier tokens only.

        :return: one number, or P numbers, for each token
        """
        return range(len(tokens))

    def lines(self, trace: Sequence[str]) -> list[str]:
        """Format a trace for people, in lines."""
        return [" ".join(trace)]

    def longest(self, size: int) -> int:
        """Return the length of the longest sentence of a size. By default, it is the longest of 200 drawn sentences."""
        rng = np.random.default_rng(size)
        return max(len(self.sentence(self.instance(size, rng)).ids) for _ in range(200))

    # What follows from the definition

    @property
    def relative(self) -> bool:
        """Whether the model uses the differences of the language's own position ids."""
        return self.coupling == "relative" and bool(self.reach)

    def position_ids(self, tokens: Sequence[str]) -> NDArray[np.int64]:
        """
        Return the position ids of the tokens so far for the model, shape (T, P): those of the language, or counted ones.

        Learned positions use only the last axis.
        """
        if not self.relative and self.coupling != "learned":
            return np.arange(len(tokens))[:, None]
        positions = np.array(self.positions(tokens), dtype=np.int64).reshape(len(tokens), -1)
        return positions if self.relative else positions[:, -1:]

    def offset(self, prompt: Sequence[str]) -> int:
        """
        Return the offset of learned position ids when an instance is solved. In training, the offset is random.

        Coupled ids are moved to the middle of all positions. Training meets the middle ones in every column, but the first and
        last positions only at the ends of sentences.
        """
        if self.coupling != "learned" or not self.coupled:
            return 0
        return max(self.max_position - 1 - int(self.position_ids(prompt).max()), 0) // 2

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each token."""
        return {token: id_ for id_, token in enumerate(self.tokens)}

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """
        Return the ids of tokens.

        :raises InputError: for a token that is not in the alphabet
        """
        ids = self.ids
        try:
            return [ids[token] for token in tokens]
        except KeyError as error:
            raise InputError(f"{error.args[0]!r} is not a token of this language; known are {_listed(self.tokens)}") from error

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ids. Padding (−1) is left out."""
        return [self.tokens[id_] for id_ in ids if id_ >= 0]

    def sentence(self, instance: Instance) -> Sentence:
        """Return the instance with its trace in the form that a model reads and learns."""
        prompt, trace = self.prompt(instance), self.trace(instance)
        if self.transduces:
            tokens, labels = prompt, self.encode(trace)
        else:
            tokens, labels = prompt + trace[:-1], [PAD_ID] * (len(prompt) - 1) + self.encode(trace)
        return Sentence(self.encode(tokens), labels, self.position_ids(tokens))

    def check(self, instance: Instance, trace: Sequence[str]) -> Verdict:
        """Execute a trace and compare its result with the right answer."""
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
    Reads a trace token by token, and keeps track of the place.

    :param trace: tokens of the trace
    """

    def __init__(self, trace: Sequence[str]) -> None:
        self.trace, self.place = trace, 0

    def take(self, legal: str | Collection[str], reason: str) -> str:
        """
        Read the next token.

        :param legal: the legal token, or several of them
        :param reason: reason why nothing else is legal
        :raises IllegalTrace: when the next token is not legal, or the trace is over
        """
        token = self.trace[self.place] if self.place < len(self.trace) else ""
        if token not in ([legal] if isinstance(legal, str) else legal):
            raise IllegalTrace(self.place, token, reason)
        self.place += 1
        return token

    def refuse(self, reason: str) -> IllegalTrace:
        """Return the error for the token that was read last."""
        return IllegalTrace(self.place - 1, self.trace[self.place - 1], reason)

    def finish(self) -> None:
        """:raises IllegalTrace: when another token follows"""
        if self.place < len(self.trace):
            raise IllegalTrace(self.place, self.trace[self.place], "nothing may follow")


def _show(result: Any) -> str:
    """Format a result for people."""
    return " ".join(map(str, result)) if isinstance(result, tuple | list) else str(result)


def whole_numbers(text: str, what: str, count: int | None = None) -> tuple[int, ...]:
    """
    Parse the numbers in a text such as ``3 1 2`` or ``3, 1, 2``.

    :param text: text with numbers
    :param what: description of the numbers for the error message
    :param count: required number of them; any number except 0 when ``None``
    :raises InputError: when there is another number of them, or anything else in the text
    """
    parts = text.replace(",", " ").split()
    enough = bool(parts) if count is None else len(parts) == count
    if not enough or not all(part.isascii() and part.isdigit() for part in parts):
        example = "3 1 2" if count is None else " ".join(str(number) for number in range(3, 3 + count))
        raise InputError(f"{text!r} is not {what}: give whole numbers separated by spaces, such as {example}")
    return tuple(map(int, parts))


def _listed(tokens: Sequence[str]) -> str:
    return " ".join(tokens[:24]) + (" …" if len(tokens) > 24 else "")
