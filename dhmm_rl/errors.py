"""The one error that is the user's to mend, and how it is told."""

import difflib
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


class InputError(ValueError):
    """
    Something handed in from outside (an argument, a file, an environment) is not usable.

    The message is one line that says what is wrong and what would be right; commands print it and exit with status 2.
    """


class EnvironmentFault(RuntimeError):
    """
    An environment of the user's own raised an error, returned what no environment may return, or lost its process.

    Commands print the line and the details, and exit with status 1.

    :param line: which environment did what, in which method and at which step of its episode
    :param details: the environment's own traceback; empty where it raised nothing
    """

    def __init__(self, line: str, details: str = "") -> None:
        super().__init__(line, details)  # both, so that it is pickled whole
        self.line, self.details = line, details

    def __str__(self) -> str:
        return self.line


def suggest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the one that was probably meant, or those that there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known[:16])}{', …' if len(known) > 16 else ''}"


def python_command() -> str:
    """The Python that runs now, as it is written in a shell in the current folder: ``.venv/bin/python``, or ``python``."""
    if shutil.which("python") == sys.executable:
        return "python"
    python, here = Path(sys.executable), Path.cwd()
    return shlex.quote(str(python.relative_to(here) if python.is_relative_to(here) else python))


def install_command(extra: str) -> str:
    """How to install what an extra of this project needs, whether the project itself came from a checkout or from elsewhere."""
    requirements = [text.replace("'", '"') for text in metadata.requires("dhmm-rl") or ()]
    needed = [text.partition(";")[0].strip() for text in requirements if f'extra == "{extra}"' in text]
    return f"{python_command()} -m pip install {shlex.join(needed)}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that somebody wrote is of the type that a hint declares; a whole number does for a number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin is types.UnionType:
        return any(fits(value, argument) for argument in arguments)
    if origin is Sequence:
        return isinstance(value, tuple | list) and all(fits(one, arguments[0]) for one in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def said(hint: Any) -> str:
    """A type hint for people."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is types.UnionType:
        return said(arguments[0])
    if origin is tuple:
        return ", ".join(map(said, arguments))
    if origin is Sequence:
        return f"one or more, each {said(arguments[0])}, such as 1,"
    return NAMES.get(origin or hint, str(hint))
