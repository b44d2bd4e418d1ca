"""Sorting by comparing and swapping neighbors. Every operation is written down and executed on an array."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    Base class of the languages of sorting algorithms.

    The size is the length of the array. Numbers are uniform, so there are duplicates. ``START 3 1 2`` is given. Operations
    follow: ``COMPARE 3 1 SWAP`` or ``COMPARE 1 2 KEEP``, in the full form each with the whole array after it; ``PASS`` between
    the passes of the algorithm; and ``END``. The place of a compared pair is not written. Within a pass each pair is next to
    the one before, so the place is clear even with duplicates.

    The executor requires that every operation is true of the array, and that END is justified: comparisons must have shown that
    no number is larger than its right neighbor, so that no array counts as sorted by accident. It does not require the
    algorithm's own swaps: other swaps are executed, too.

    Learned position ids (coupled as in arXiv 2405.20671): a number has its place in the array, counted from 1. COMPARE has the
    id before that of its pair, so that the number to copy next always has the next id. START and PASS, which begin a pass, have
    the place where the pass begins or ends. All other tokens have 0.
    """

    sizes: tuple[int, int] = (2, 8)
    """The smallest and the largest size in training."""
    form: Literal["full", "compact"] = "full"
    """``full``: the whole array is written after each operation. ``compact``: it is not."""
    values: int = 32
    """Number of different numbers: 0 to ``values`` − 1."""

    coupled = True
    end = "END"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values < 2:
            raise InputError(f"values is {self.values}; it must be at least 2")

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All tokens: operations and numbers."""
        return (*OPERATIONS, *self.numbers)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Tokens of the numbers."""
        return tuple(map(str, range(self.values)))

    @abstractmethod
    def pair(self, sweep: int, step: int) -> int:
        """Return the left place of the pair that a pass compares in a step. Places, passes and steps count from 0."""

    @abstractmethod
    def passes(self, array: list[int]) -> "list[list[bool]]":
        """Sort an array in place, and return whether each step of each pass swaps."""

    @abstractmethod
    def mark(self, sweep: int, size: int) -> int:
        """Return the place that identifies a pass over an array of a size, counted from 1."""

    def instance(self, size: int, rng: np.random.Generator) -> Array:
        """Draw an array of ``size`` numbers."""
        return tuple(rng.integers(self.values, size=size).tolist())

    def longest(self, size: int) -> int:
        """Return the length of the sentence of a descending array of different numbers, which takes the most operations."""
        language = replace(self, values=max(self.values, size))  # an array of equal numbers would need fewer
        return len(language.sentence(tuple(reversed(range(size)))).ids)

    def prompt(self, instance: Array) -> list[str]:
        """Return ``START`` and the array."""
        return ["START", *(self.numbers[value] for value in instance)]

    def trace(self, instance: Array) -> list[str]:
        """Return the operations of the algorithm."""
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
        """Parse an array such as ``3 1 2`` or ``START 3 1 2``."""
        array = whole_numbers(text.removeprefix("START"), "an array")
        if max(array) >= self.values:
            raise InputError(f"{max(array)} is too large; numbers of this language are below {self.values}")
        return array

    def execute(self, instance: Array, trace: Sequence[str]) -> Array:
        """
        Execute the operations on an array of numbers.

        :return: the array after END
        :raises IllegalTrace: for a token that is not an operation, for an operation that is not true of the array, and for an
            END that the comparisons do not justify
        """
        array, items = list(instance), list(range(len(instance)))  # the numbers, and for each one its index in the instance
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
                    array[i], array[i + 1] = array[i + 1], array[i]
                    items[i], items[i + 1] = items[i + 1], items[i]
                if self.form == "full":
                    for value in array:
                        reader.take([str(value)], f"the array is {' '.join(map(str, array))} now")
            else:
                if not all(_follows(shown, *pair) for pair in pairwise(items)):
                    raise reader.refuse(f"comparisons have not shown {' '.join(map(str, array))} to be sorted")
                reader.finish()
                return tuple(array)

    def answer(self, instance: Array) -> Array:
        """Return the result of Python's ``sorted``."""
        return tuple(sorted(instance))

    def lines(self, trace: Sequence[str]) -> list[str]:
        """Format a trace with one operation per line."""
        lines: list[list[str]] = [[]]
        for token in trace:
            if token in ("COMPARE", "PASS", "END") and lines[-1]:
                lines.append([])
            lines[-1].append(token)
        return [" ".join(line) for line in lines]

    def positions(self, tokens: Sequence[str]) -> Sequence[Any]:
        """Return the places in the array."""
        size = next((i for i, token in enumerate(tokens[1:]) if token in OPERATIONS), len(tokens) - 1)
        ids, previous, sweep, step = [max(self.mark(0, size), 0)], 0, 0, 0
        for token in tokens[1:]:
            previous += 1  # a number is one place to the right of the token before it
            ids.append(previous)
            if token == "COMPARE":
                previous = ids[-1] = max(self.pair(sweep, step), 0)
                step += 1
            elif token == "PASS":
                sweep, step = sweep + 1, 0
                previous, ids[-1] = 0, max(self.mark(sweep, size), 0)
            elif token in OPERATIONS:
                previous = ids[-1] = 0
        return ids


@dataclass(frozen=True)
class BubbleSort(Sorting):
    """
    Bubble sort: passes from left to right, each one shorter than the one before, until a pass swaps nothing.

    In the compact form position ids have two axes, pass and column, as if the trace were a table. A pass is a row, and its i-th
    comparison has the columns 4 i to 4 i + 3. The given array is row 0: its i-th number has the column of a comparison's left
    number, and START is at the end of the row, where later rows have PASS. So the numbers of a comparison, and whether another
    comparison follows, can always be read at the same few positions: in the comparison before it, and in the row above, one
    comparison further.
    """

    form: Literal["full", "compact"] = "compact"

    @property
    def model(self) -> dict[str, Any]:
        """
        A latent layer that can store a flag through a pass: whether anything was swapped, which no token within reach says.

        The dither is small enough that the flag lasts through a pass. The learning rate is high, because only large logits make
        a transition certain.
        """
        return {"num_states": 16, "matrices": 16, "latent_rate": 10.0, "dither": 1e-5}

    @property
    def training(self) -> dict[str, Any]:
        """Training is longer than in other languages, because few passes swap only at their beginning."""
        return {"steps": 3000}

    @property
    def reach(self) -> tuple[int, ...]:
        """One row above, and the columns that a comparison depends on. The full form counts its positions."""
        return (1, 6) if self.form == "compact" else ()

    def positions(self, tokens: Sequence[str]) -> Sequence[Any]:
        """Return pass and column; in the full form, the places in the array."""
        if self.form == "full":
            return super().positions(tokens)
        size = next((i for i, token in enumerate(tokens[1:]) if token in OPERATIONS), len(tokens) - 1)
        ids = [(0, 4 * size), *((0, 4 * i + 1) for i in range(size))]
        row, column = 1, 0
        for token in tokens[size + 1 :]:
            ids.append((row, column))
            row, column = (row + 1, 0) if token == "PASS" else (row, column + 1)
        return ids

    def pair(self, sweep: int, step: int) -> int:
        """Pairs go from the left end to the right."""
        return step

    def mark(self, sweep: int, size: int) -> int:
        """Return the start of the sorted part, one place after the last pair of the pass."""
        return size + 1 - sweep

    def passes(self, array: list[int]) -> list[list[bool]]:
        """Sort an array in place, and return whether each step of each pass swaps."""
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
        """Pairs go from the number of the pass to the left."""
        return sweep - step

    def mark(self, sweep: int, size: int) -> int:
        """Return the place of the number that the pass moves."""
        return sweep + 2

    def passes(self, array: list[int]) -> list[list[bool]]:
        """Sort an array in place, and return whether each step of each pass swaps."""
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
    """Return whether a chain of comparisons shows that one item is not larger than another."""
    reached, frontier = {low}, {low}
    while frontier and high not in reached:
        frontier = {b for a, b in shown if a in frontier} - reached
        reached |= frontier
    return high in reached
