"""
Checks of values that a user wrote, in a recipe, in a run's ``run.json`` or on the command line.

What a key may hold is written once, as the type hint of a dataclass field: ``steps: Annotated[int, Range(1)]``.
"""

import re
import sys
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal

from dhmm_rl.errors import InputError, fits, said, suggest

LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Range:
    """
    The numbers from ``low`` to ``high``. Infinity and NaN are never among them.

    :param low: smallest number
    :param high: largest number
    :param above: whether the smallest number itself is excluded
    :param below: whether the largest number itself is excluded
    """

    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        return high_enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = (
            "positive" if (self.above, self.low) == (True, 0) else f"{'above' if self.above else 'at least'} {_short(self.low)}"
        )
        high = f"{'below' if self.below else 'at most'} {_short(self.high)}"
        parts = [text for text, bound in ((low, self.low), (high, self.high)) if abs(bound) < LARGEST]
        return " and ".join(parts) or "finite"


@dataclass(frozen=True)
class Scheduled:
    """Marks a number that may also be a text such as ``lin_0.001``: it falls linearly from that number to 0."""

    range: Range


@dataclass(frozen=True)
class TableOf:
    """Marks a dictionary with the fields of a dataclass as keys."""

    kind: type[Any]


@dataclass(frozen=True)
class Matching:
    """
    Marks a text of a certain form.

    :param pattern: regular expression that the whole text matches
    :param expected: what to say of the form, after "it must be"
    """

    pattern: str
    expected: str


def one_of(*choices: str) -> Matching:
    """Mark a text that is one of a few."""
    return Matching("|".join(choices), f"one of {', '.join(choices)}")


@dataclass(frozen=True)
class NotEmpty:
    """Marks a list with at least one and at most ``most`` entries."""

    most: int = 2**16


ANYTHING_FINITE = Range()

Count = Annotated[int, Range(1, 10**9)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0, 1e6)]
Share = Annotated[float, Range(0, 1)]


def check(value: Any, hint: Any, where: str, key: str, partial: bool = False) -> None:
    """
    Check one value, and everything inside it, against a type hint.

    :param value: what the user wrote
    :param hint: type hint of a dataclass field; a dataclass stands for a table with its fields as keys
    :param where: what the value is part of, for the message, e.g. ``the recipe mine``
    :param key: name of the value, for the message, e.g. ``ppo.n_steps``
    :param partial: accept tables that lack keys without a default
    :raises InputError: for a value of another kind or out of its range, and for an unknown key, with what would be right
    """

    def refuse(expected: str) -> InputError:
        shown = f"{value!r}"
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return InputError(f"{where} has {key} = {shown}; it must be {expected}")

    hint, origin, arguments, marks = _parse(hint)
    scheduled, matching, not_empty = marks.get(Scheduled), marks.get(Matching), marks.get(NotEmpty)
    if origin in (types.UnionType, typing.Union):
        kinds = [argument for argument in arguments if argument is not types.NoneType]
        if value is None and len(kinds) < len(arguments):
            return
        of_kind = [kind for kind in kinds if _is_kind(value, kind)]
        check(value, (of_kind or kinds)[0], where, key, partial)
    elif hint is Any:
        if not _is_plain(value):
            raise refuse("made of texts, numbers, true or false, lists and tables")
    elif is_dataclass(hint):
        if key and not isinstance(value, dict):
            raise refuse("a table")
        check_table(value, hint, where, f"{key}." if key else "", partial)
    elif origin is dict:
        if not isinstance(value, dict):
            raise refuse("a table")
        for name, entry in value.items():
            check(entry, arguments[1], where, f"{key}.{name}", partial)
    elif origin is list:
        if not isinstance(value, list | tuple) or (not_empty is not None and not 1 <= len(value) <= not_empty.most):
            raise refuse(
                f"a list of {said(_parse(arguments[0])[0])}s"
                + ("" if not_empty is None else f", 1 to {not_empty.most} of them")
            )
        for number, entry in enumerate(value):
            check(entry, arguments[0], where, f"{key}[{number}]", partial)
    elif scheduled is not None:
        start = _start(value) if isinstance(value, str) else value
        if not (fits(start, float) and start in scheduled.range):
            raise refuse(f"a number, {scheduled.range}, or a text such as 'lin_0.001', which falls linearly to 0")
    elif origin is Literal:
        if not (isinstance(value, str) and value in arguments):
            raise refuse(said(hint))
    elif not fits(value, hint):
        raise refuse(said(hint))
    elif matching is not None and not re.fullmatch(matching.pattern, value):
        raise refuse(matching.expected)
    elif hint in (int, float) and value not in (allowed := marks.get(Range, ANYTHING_FINITE)):
        raise refuse(str(allowed))


def check_table(table: Any, kind: Any, where: str, prefix: str = "", partial: bool = False) -> None:
    """
    Check the keys of a table and their values.

    :param kind: dataclass with a field for each key
    :param where: what the table is, for the message, e.g. ``the recipe mine``
    :param prefix: of the keys' names in the message, e.g. ``ppo.``
    :param partial: accept a table that lacks keys without a default
    :raises InputError: for the first key that is not right
    """
    if not isinstance(table, dict):
        raise InputError(f"{where} is {table!r:.80}; it must be a table")
    hints = _hints(kind)
    for key, value in table.items():
        if key not in hints:
            raise InputError(f"{where} has a key {prefix}{key}{suggest(key, sorted(hints))}")
        check(value, hints[key], where, prefix + key, partial)
    for field in fields(kind):
        if not partial and field.name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where} lacks {prefix + field.name!r}")


def check_ranges(settings: Any, message: str = "{name} is {value}; it must be {expected}") -> None:
    """
    Check that the numbers of a dataclass instance, of kinds that are known to be right, are in their ranges.

    :param settings: dataclass whose type hints say the ranges
    :param message: format of the error's message
    :raises InputError: for the first number that is not
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple | list) else (value,):
            allowed = _find_range(hint)
            if allowed is not None and isinstance(one, int | float) and one not in allowed:
                raise InputError(message.format(name=name, value=one, expected=allowed))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


@cache
def _parse(hint: Any) -> tuple[Any, Any, tuple[Any, ...], dict[type[Any], Any]]:
    """A hint without its marks, its origin, its arguments, and the marks by their classes."""
    marks: dict[type[Any], Any] = {}
    if typing.get_origin(hint) is Annotated:
        hint, *found = typing.get_args(hint)
        marks = {type(mark): mark for mark in found}
    if TableOf in marks:
        hint = marks[TableOf].kind
    return hint, typing.get_origin(hint), typing.get_args(hint), marks


def _is_kind(value: Any, hint: Any) -> bool:
    hint, origin, _, _ = _parse(hint)
    if is_dataclass(hint):
        return isinstance(value, dict)
    if origin is list:
        return isinstance(value, list | tuple)
    return fits(value, hint)


def _find_range(hint: Any) -> Range | None:
    """The range inside a hint such as ``tuple[Count, ...] | None``."""
    _, _, arguments, marks = _parse(hint)
    if Range in marks:
        allowed: Range = marks[Range]
        return allowed
    return next(filter(None, map(_find_range, arguments)), None)


def _start(text: str) -> float | None:
    """The number that a schedule such as ``lin_0.001`` starts from."""
    try:
        return float(text.removeprefix("lin_")) if text.startswith("lin_") else None
    except ValueError:
        return None


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _short(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else f"{bound:,}"
