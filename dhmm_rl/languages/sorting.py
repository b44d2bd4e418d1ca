"""Sorting by comparing and swapping neighbors, every step written down and executed on a real array."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from dhmm_rl.errors import InputError
from dhmm_rl.languages.language import Language, TraceReader, whole_numbers

Array = tuple[int, ...]

OPERATIONS = ("START", "COMPARE", "SWAP", "KEEP", "PASS", "END")


@dataclass(frozen=True)
class Sorting(Language[Array]):
    """
    What the languages of sorting algorithms have in common.

    Size: length of the array. Its numbers are uniform, so there are duplicates. ``START 3 1 2`` is given; then operations
    follow: ``COMPARE 3 1 SWAP`` or ``COMPARE 1 2 KEEP``, in the full form each with the whole array as it then is; ``PASS``
    between the passes of the algorithm; ``END``. The pair that COMPARE means is not written: within a pass each stands beside
    the one before, so duplicates leave no doubt.

    The executor insists on what is true of the array, and on END being earned: comparisons must have shown every number to be
    no larger than its right neighbor, so no array counts as sorted by accident. It does not insist on the algorithm: other
    swaps than its own are executed, too.

    Learned position ids (coupled as in arXiv 2405.20671): a number's place in the array counted from 1, and COMPARE the one
    before its pair, so that what is to be copied next always has the next id. START and PASS, which open a pass, mark the place
    that says where it begins or ends. Everything else has 0.
    """

    sizes: tuple[int, int] = (2, 8)
    """The smallest and the largest size in training."""
    form: Literal["full", "compact"] = "full"
    """Whether the whole array is written after every operation (``full``) or not (``compact``)."""
    values: int = 32
    """Numbers are below this."""

    coupled = True
    end = "END"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values < 2:
            raise InputError(f"values is {self.values}; it must be at least 2")

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Operations and numbers."""
        return (*OPERATIONS, *self.numbers)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The tokens of the numbers."""
        return tuple(map(str, range(self.values)))

    @abstractmethod
    def pair(self, sweep: int, step: int) -> int:
        """The left place of the pair that a pass compares in one of its steps, both counted from 0."""

    @abstractmethod
    def passes(self, array: list[int]) -> "list[list[bool]]":
        """Sort an array in place by the algorithm; whether each step of each pass swaps."""

    @abstractmethod
    def mark(self, sweep: int, size: int) -> int:
        """The place in the array, counted from 1, by which a pass of an array of this size is known."""

    def instance(self, size: int, rng: np.random.Generator) -> Array:
        """An array of ``size`` numbers."""
        return tuple(rng.integers(self.values, size=size).tolist())

    def longest(self, size: int) -> int:
        """That of a descending array."""
        return len(self.sentence(tuple(self.values * i // size for i in reversed(range(size)))).ids)

    def prompt(self, instance: Array) -> list[str]:
        """``START`` and the array."""
        return ["START", *(self.numbers[value] for value in instance)]

    def trace(self, instance: Array) -> list[str]:
        """The algorithm's operations."""
        written: list[str] = []
        array = [self.numbers[value] for value in instance]
        for sweep, swaps in enumerate(self.passes(list(instance))):
            if sweep > 0:
                written.append("PASS")
            for step, swap in enumerate(swaps):
                i = self.pair(sweep, step)
                written += ["COMPARE", array[i], array[i + 1], "SWAP" if swap else "KEEP"]
                if swap:
                    array[i : i + 2] = array[i + 1], array[i]
                if self.form == "full":
                    written += array
        return [*written, "END"]

    def parse(self, text: str) -> Array:
        """An array such as ``3 1 2`` or ``START 3 1 2``."""
        array = whole_numbers(text.removeprefix("START"), "an array")
        if max(array) >= self.values:
            raise InputError(f"{max(array)} is too large; numbers of this language are below {self.values}")
        return array

    def execute(self, instance: Array, trace: Sequence[str]) -> Array:
        """
        Perform the operations on an array of numbers.

        :return: the array after END
        :raises IllegalTrace: for an operation that is none, or that says what is not true of the array, and for an END that no
            comparisons justify
        """
        array, items = list(instance), list(range(len(instance)))  # numbers, and which of the instance's each one is
        shown: set[tuple[int, int]] = set()  # pairs of items that a comparison showed to be in order
        reader, sweep, step = TraceReader(trace), 0, 0
        while True:
            operation = reader.take(["COMPARE", "PASS", "END"], "COMPARE, PASS or END must stand here")
            if operation == "PASS":
                sweep, step = sweep + 1, 0
            elif operation == "COMPARE":
                i = self.pair(sweep, step)
                step += 1
                if not 0 <= i < len(array) - 1:
                    raise reader.refuse("this pass has no pair left")
                for value in array[i : i + 2]:
                    reader.take([str(value)], f"the numbers at this pair are {array[i]} and {array[i + 1]}")
                if array[i] <= array[i + 1]:
                    shown.add((items[i], items[i + 1]))
                if array[i] >= array[i + 1]:
                    shown.add((items[i + 1], items[i]))
                if reader.take(["SWAP", "KEEP"], "SWAP or KEEP must follow a comparison") == "SWAP":
                    for these in (array, items):
                        these[i], these[i + 1] = these[i + 1], these[i]
                if self.form == "full":
                    for value in array:
                        reader.take([str(value)], f"the array is {' '.join(map(str, array))} now")
            else:
                if not all(_follows(shown, *pair) for pair in pairwise(items)):
                    raise reader.refuse(f"comparisons have not shown {' '.join(map(str, array))} to be sorted")
                reader.finish()
                return tuple(array)

    def answer(self, instance: Array) -> Array:
        """Python's ``sorted``."""
        return tuple(sorted(instance))

    def lines(self, trace: Sequence[str]) -> list[str]:
        """One operation a line."""
        found: list[list[str]] = [[]]
        for token in trace:
            if token in ("COMPARE", "PASS", "END") and found[-1]:
                found.append([])
            found[-1].append(token)
        return [" ".join(line) for line in found]

    def positions(self, tokens: Sequence[str]) -> Sequence[Any]:
        """Places in the array."""
        size = next((i for i, token in enumerate(tokens[1:]) if token in OPERATIONS), len(tokens) - 1)
        found, before, sweep, step = [max(self.mark(0, size), 0)], 0, 0, 0
        for token in tokens[1:]:
            before += 1  # a number stands one place to the right of what comes before it
            found.append(before)
            if token == "COMPARE":
                before = found[-1] = max(self.pair(sweep, step), 0)
                step += 1
            elif token == "PASS":
                sweep, step = sweep + 1, 0
                before, found[-1] = 0, max(self.mark(sweep, size), 0)
            elif token in OPERATIONS:
                before = found[-1] = 0
        return found


@dataclass(frozen=True)
class BubbleSort(Sorting):
    """
    Bubble sort: passes from left to right, each one shorter than the one before, until one swaps nothing.

    In the compact form position ids have two axes, pass and column, as though the trace were a table: a pass is a row, and its
    i-th comparison has the columns 4 i to 4 i + 3. The array that is given is row 0, with its i-th number where a comparison's
    left number stands, and START at the row's end, where later rows have PASS. So the numbers of a comparison, and whether one
    follows, always stand at the same few places: in the comparison before it, and in the row above it one comparison further.
    """

    form: Literal["full", "compact"] = "compact"

    @property
    def model(self) -> dict[str, Any]:
        """
        A latent layer that can keep a flag through a pass: whether anything was swapped, which no token in reach says.

        Little dither, so that it lasts as long as the pass does, and fast learning, since only large logits are sure.
        """
        return {"num_states": 16, "matrices": 16, "latent_rate": 10.0, "dither": 1e-5}

    @property
    def training(self) -> dict[str, Any]:
        """Longer than other languages: few passes swap only where they begin."""
        return {"steps": 3000}

    @property
    def reach(self) -> tuple[int, ...]:
        """The row above, and to either side what a comparison needs; the full form counts its positions."""
        return (1, 6) if self.form == "compact" else ()

    def positions(self, tokens: Sequence[str]) -> Sequence[Any]:
        """Pass and column; places in the array in the full form."""
        if self.form == "full":
            return super().positions(tokens)
        size = next((i for i, token in enumerate(tokens[1:]) if token in OPERATIONS), len(tokens) - 1)
        found = [(0, 4 * size), *((0, 4 * i + 1) for i in range(size))]
        row, column = 1, 0
        for token in tokens[size + 1 :]:
            found.append((row, column))
            row, column = (row + 1, 0) if token == "PASS" else (row, column + 1)
        return found

    def pair(self, sweep: int, step: int) -> int:
        """From the left end to the right."""
        return step

    def mark(self, sweep: int, size: int) -> int:
        """Where the part begins that is sorted already, one place beyond the pass's last pair."""
        return size + 1 - sweep

    def passes(self, array: list[int]) -> list[list[bool]]:
        """Sort."""
        done: list[list[bool]] = []
        for last in range(len(array) - 1, 0, -1):
            swaps = []
            for i in range(last):
                swap = array[i] > array[i + 1]
                if swap:
                    array[i], array[i + 1] = array[i + 1], array[i]
                swaps.append(swap)
            done.append(swaps)
            if not any(swaps):
                break
        return done


@dataclass(frozen=True)
class InsertionSort(Sorting):
    """Insertion sort: each pass takes the next number and moves it left until its neighbor there is not larger."""

    def pair(self, sweep: int, step: int) -> int:
        """From the pass's number to the left."""
        return sweep - step

    def mark(self, sweep: int, size: int) -> int:
        """The number that the pass moves to its place."""
        return sweep + 2

    def passes(self, array: list[int]) -> list[list[bool]]:
        """Sort."""
        done: list[list[bool]] = []
        for sweep in range(len(array) - 1):
            swaps = []
            for i in range(sweep, -1, -1):
                swaps.append(array[i] > array[i + 1])
                if not swaps[-1]:
                    break
                array[i], array[i + 1] = array[i + 1], array[i]
            done.append(swaps)
        return done


def _follows(shown: set[tuple[int, int]], low: int, high: int) -> bool:
    """Whether a chain of comparisons leads from one item up to another."""
    reached, frontier = {low}, {low}
    while frontier and high not in reached:
        frontier = {b for a, b in shown if a in frontier} - reached
        reached |= frontier
    return high in reached
