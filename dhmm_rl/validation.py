"""
Validation of values that a user wrote in a recipe, in a run's ``run.json`` or on the command line.

The valid values of a key are written once, as the type hint of a dataclass field: ``steps: Annotated[int, Range(1)]``.
"""

import difflib
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal

from dhmm_rl.errors import InputError

LARGEST = sys.float_info.max
TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


@dataclass(frozen=True)
class Range:
    """
    Marks a number from ``low`` to ``high``. Infinity and NaN are never valid.

    :param low: lower bound
    :param high: upper bound
    :param above: exclude the lower bound itself
    :param below: exclude the upper bound itself
    """

    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        low_enough = value < self.high if self.below else value <= self.high
        return high_enough and low_enough

    def __str__(self) -> str:
        parts = []
        if self.above and self.low == 0:
            parts.append("positive")
        elif self.low > -LARGEST:
            parts.append(f"{'above' if self.above else 'at least'} {_format_bound(self.low)}")
        if self.high < LARGEST:
            parts.append(f"{'below' if self.below else 'at most'} {_format_bound(self.high)}")
        return " and ".join(parts) or "finite"


@dataclass(frozen=True)
class Scheduled:
    """Marks a number that may also be a schedule such as ``lin_0.001``, which falls linearly from that number to 0."""

    range: Range


@dataclass(frozen=True)
class TableOf:
    """Marks a dictionary that has the fields of a dataclass as its keys."""

    kind: type[Any]


@dataclass(frozen=True)
class Matching:
    """
    Marks a string of a certain form.

    :param pattern: regular expression that the whole string must match
    :param expected: description of the form, which follows "it must be" in the error's message
    """

    pattern: str
    expected: str


def one_of(*choices: str) -> Matching:
    """Return the mark of a string that must be one of the choices."""
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

    :param value: the value that the user wrote
    :param hint: type hint of a dataclass field; a dataclass stands for a table that has its fields as keys
    :param where: description of the file or recipe that holds the value, for the message, e.g. ``the recipe mine``
    :param key: name of the value, for the message, e.g. ``ppo.n_steps``
    :param partial: accept tables that lack keys without a default
    :raises InputError: if a value has another type or is out of its range, or if a key is unknown; the message says what
        would be right
    """

    hint, origin, arguments, marks = _parse(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [argument for argument in arguments if argument is not types.NoneType]
        if value is None and len(kinds) < len(arguments):
            return
        # The value's own kind gives the better message: a list in a union of a list and a table is checked as a list.
        of_kind = [kind for kind in kinds if _is_kind(value, kind)]
        check(value, (of_kind or kinds)[0], where, key, partial)
    elif is_dataclass(hint):
        if key and not isinstance(value, dict):
            raise _invalid(value, where, key, "a table")
        check_table(value, hint, where, f"{key}." if key else "", partial)
    elif origin is dict:
        if not isinstance(value, dict):
            raise _invalid(value, where, key, "a table")
        for name, entry in value.items():
            check(entry, arguments[1], where, f"{key}.{name}", partial)
    elif origin is list:
        _check_length(value, arguments[0], marks.get(NotEmpty), where, key)
        for number, entry in enumerate(value):
            check(entry, arguments[0], where, f"{key}[{number}]", partial)
    else:
        expected = _expected_instead(value, hint, marks)
        if expected is not None:
            raise _invalid(value, where, key, expected)


def _check_length(value: Any, entry_hint: Any, not_empty: NotEmpty | None, where: str, key: str) -> None:
    """Check that a value is a list, and that its length is in the range of its mark."""
    if isinstance(value, list | tuple) and (not_empty is None or 1 <= len(value) <= not_empty.most):
        return
    expected = f"a list of {describe_type(_parse(entry_hint)[0])}s"
    if not_empty is not None:
        expected += f", 1 to {not_empty.most} of them"
    raise _invalid(value, where, key, expected)


def _expected_instead(value: Any, hint: Any, marks: dict[type[Any], Any]) -> str | None:
    """Return ``None`` for a valid number, string or other single value; else what it must be, in words."""
    if hint is Any:
        return None if _is_plain(value) else "made of strings, numbers, true or false, lists and tables"
    if Scheduled in marks:
        allowed = marks[Scheduled].range
        start = _start(value) if isinstance(value, str) else value
        if matches_type(start, float) and start in allowed:
            return None
        return f"a number, {allowed}, or a string such as 'lin_0.001', which falls linearly to 0"
    if typing.get_origin(hint) is Literal and not isinstance(value, str):  # a list cannot be compared with the choices
        return describe_type(hint)
    if not matches_type(value, hint):
        return describe_type(hint)
    if Matching in marks and not re.fullmatch(marks[Matching].pattern, value):
        return str(marks[Matching].expected)
    if hint in (int, float) and value not in (allowed := marks.get(Range, ANYTHING_FINITE)):
        return str(allowed)
    return None


def _invalid(value: Any, where: str, key: str, expected: str) -> InputError:
    """Return the error for a value that is not what it must be; a long value is cut short in its message."""
    shown = f"{value!r}"
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return InputError(f"{where} has {key} = {shown}; it must be {expected}")


def check_table(table: Any, kind: Any, where: str, prefix: str = "", partial: bool = False) -> None:
    """
    Check the keys of a table and their values.

    :param table: the table that the user wrote
    :param kind: dataclass that has a field for each key
    :param where: description of the file or recipe that holds the table, for the message, e.g. ``the recipe mine``
    :param prefix: prefix of the keys' names in the message, e.g. ``ppo.``
    :param partial: accept a table that lacks keys without a default
    :raises InputError: if a key is unknown, has an invalid value or is missing; the first one is named
    """
    if not isinstance(table, dict):
        raise InputError(f"{where} is {table!r:.80}; it must be a table")
    hints = _hints(kind)
    for key, value in table.items():
        if key not in hints:
            raise InputError(f"{where} has a key {prefix}{key}{did_you_mean(key, sorted(hints))}")
        check(value, hints[key], where, prefix + key, partial)
    for field in fields(kind):
        if not partial and field.name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where} lacks {prefix + field.name!r}")


def check_ranges(settings: Any, message: str = "{name} is {value}; it must be {expected}") -> None:
    """
    Check that the numbers of a dataclass instance are in their ranges. Their types are not checked.

    :param settings: instance of a dataclass with ranges in its type hints
    :param message: format of the error's message
    :raises InputError: if a number is out of its range; the first one is named
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple | list) else (value,):
            allowed = _find_range(hint)
            if allowed is not None and isinstance(one, int | float) and one not in allowed:
                raise InputError(message.format(name=name, value=one, expected=allowed))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """
    Return the end of an error's message about an unknown name: the closest known name, or the known names.

    :param name: the unknown name
    :param known: names that would be right
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known[:16])}{', …' if len(known) > 16 else ''}"


def matches_type(value: Any, hint: Any) -> bool:
    """Return whether a value has the type that a hint declares. Where the hint says ``float``, an ``int`` is valid, too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(matches_type, value, arguments))
    if origin in (types.UnionType, typing.Union):
        return any(matches_type(value, argument) for argument in arguments)
    if origin in (Sequence, list):
        return isinstance(value, tuple | list) and all(matches_type(one, arguments[0]) for one in value)
    if isinstance(value, bool):  # a bool is an instance of int, but no valid number
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def describe_type(hint: Any) -> str:
    """Return a type hint in words, as they follow "it must be" in an error's message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return describe_type(arguments[0])
    if origin is tuple:
        return ", ".join(map(describe_type, arguments))
    if origin in (Sequence, list):
        return f"one or more, each {describe_type(arguments[0])}, such as 1,"
    return TYPE_NAMES.get(origin or hint, str(hint))


def describe_values(hint: Any) -> str:
    """Return the valid values of a dataclass field in words, such as "a whole number, at least 1"; for reference pages."""
    hint, origin, arguments, marks = _parse(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [describe_values(argument) for argument in arguments if argument is not types.NoneType]
        return ", or ".join(dict.fromkeys(kinds))
    if Scheduled in marks:
        return f"a number, {marks[Scheduled].range}, or a schedule such as 'lin_0.001'"
    if Matching in marks:
        return str(marks[Matching].expected)
    if is_dataclass(hint):
        return "a table"
    if origin is list:
        return f"a list, each {describe_values(arguments[0])}"
    if origin is dict:
        return "a table" if arguments[1] is Any else f"a table, each value {describe_values(arguments[1])}"
    if hint in (int, float) and Range in marks:
        return f"{TYPE_NAMES[hint]}, {marks[Range]}"
    return describe_type(hint)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


@cache
def _parse(hint: Any) -> tuple[Any, Any, tuple[Any, ...], dict[type[Any], Any]]:
    """Return a hint without its marks, its origin, its arguments, and the marks by their classes."""
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
    return matches_type(value, hint)


def _find_range(hint: Any) -> Range | None:
    """Return the range inside a hint such as ``tuple[Count, ...] | None``."""
    _, _, arguments, marks = _parse(hint)
    if Range in marks:
        allowed: Range = marks[Range]
        return allowed
    return next(filter(None, map(_find_range, arguments)), None)


def _start(text: str) -> float | None:
    """Return the number at which a schedule such as ``lin_0.001`` starts, ``None`` if the text is not a schedule."""
    try:
        return float(text.removeprefix("lin_")) if text.startswith("lin_") else None
    except ValueError:
        return None


def _is_plain(value: Any) -> bool:
    """Return whether JSON can hold a value."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _format_bound(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else f"{bound:,}"
