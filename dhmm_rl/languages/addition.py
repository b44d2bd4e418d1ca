"""Addition of two numbers with the same number of decimal digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from dhmm_rl.errors import InputError
from dhmm_rl.languages.language import Language, TraceReader

DIGITS = tuple("0123456789")
CARRIES = ("c0", "c1")


class Sum(NamedTuple):
    """
    Two numbers to add.

    :param a: decimal digits of the first number, the highest first; leading zeros count as digits
    :param b: decimal digits of the second number; it has the same number of digits
    """

    a: str
    b: str


@dataclass(frozen=True)
class Addition(Language[Sum]):
    """
    Addition of two n-digit numbers: ``2 7 + 0 5 =``, then ``0 3 2 END``.

    The size is the number n of digits of either number. Digits are uniform, so leading zeros occur. The sum always has n + 1
    digits, so that the prompt alone determines the length of the answer.

    Position ids (position coupling, arXiv 2405.20671, section 3): digits of the same significance share an id, and so does the
    carry into the next column. So column i looks the same at every length. ``=`` has the id before that of the answer's first
    digit, as if it were the digit written before it. ``+`` marks the end of the answer: it has the id of the highest column if
    that one is written last, and otherwise the id after the lowest column.
    """

    format: Literal["plain", "reversed", "carry"] = "reversed"
    """How the sum is written. ``plain``: highest digit first. ``reversed``: lowest digit first (arXiv 2307.03381). ``carry``:
    lowest digit first, and after each digit the carry out of its column."""

    coupled = True
    end = "END"
    reach = (2,)
    tokens = (*DIGITS, "+", "=", "END", *CARRIES)

    @property
    def training(self) -> dict[str, Any]:
        """Training is shorter than in other languages."""
        return {"steps": 1500}

    def instance(self, size: int, rng: np.random.Generator) -> Sum:
        """Draw two numbers of ``size`` digits."""
        digits = rng.integers(ord("0"), ord("9") + 1, 2 * size, dtype=np.uint8).tobytes().decode()
        return Sum(digits[:size], digits[size:])

    def prompt(self, instance: Sum) -> list[str]:
        """Return ``a + b =``."""
        return [*instance.a, "+", *instance.b, "="]

    def trace(self, instance: Sum) -> list[str]:
        """Return the digits of the sum, and the carries if the format has them."""
        digits = str(self.answer(instance)).zfill(len(instance.a) + 1)
        if self.format == "plain":
            return [*digits, "END"]
        if self.format == "reversed":
            return [*reversed(digits), "END"]
        written, carry = [], 0
        for x, y, digit in zip(reversed(instance.a), reversed(instance.b), reversed(digits), strict=False):
            carry = int(int(x) + int(y) + carry >= 10)
            written += [digit, CARRIES[carry]]
        return [*written, digits[0], "END"]

    def parse(self, text: str) -> Sum:
        """Parse a sum such as ``27+5`` or ``2 7 + 0 5 =``. The shorter number gets leading zeros."""
        parts = text.replace(" ", "").removesuffix("=").split("+")
        if len(parts) != 2 or not all(part and set(part) <= set(DIGITS) for part in parts):
            raise InputError(f"{text!r} is not a sum; give two whole numbers with a plus between them, such as 27+5")
        width = max(map(len, parts))
        return Sum(parts[0].zfill(width), parts[1].zfill(width))

    def execute(self, instance: Sum, trace: Sequence[str]) -> int:
        """
        Read the number that was written.

        :raises IllegalTrace: for a token that is not allowed at its place, and for a wrong carry
        """
        reader, digits, carry = TraceReader(trace), "", 0
        for x, y in zip(reversed(instance.a), reversed(instance.b), strict=True):
            digits += reader.take(DIGITS, "a digit of the sum must stand here")
            if self.format == "carry":
                carry = int(int(x) + int(y) + carry >= 10)
                reader.take([CARRIES[carry]], f"the carry out of this column is {carry}")
        digits += reader.take(DIGITS, "a digit of the sum must stand here")
        reader.take(["END"], f"the sum has {len(digits)} digits; END must follow")
        reader.finish()
        return int(digits if self.format == "plain" else digits[::-1])

    def answer(self, instance: Sum) -> int:
        """Return Python's sum."""
        return int(instance.a) + int(instance.b)

    def positions(self, tokens: Sequence[str]) -> list[int]:
        """Return the significance of each digit, counted from 1."""
        n = tokens.index("+")
        number, plus, equals = range(n, 0, -1), n + 1, 0
        if self.format == "plain":
            answer, plus, equals = [*range(n + 1, 0, -1)], 0, n + 2
        elif self.format == "reversed":
            answer = [*range(1, n + 2)]
        else:
            answer = [s for s in range(1, n + 2) for _ in CARRIES]
        beyond = len(tokens) - 2 * n - 2 - len(answer)
        return [*number, plus, *number, equals, *answer, *[0] * max(beyond, 0)][: len(tokens)]
