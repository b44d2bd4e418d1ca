"""Converts NumPy scalars and arrays to plain Python values, which JSON and ``torch.load`` can hold."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def plain(value: Any) -> Any:
    """Replace NumPy scalars by Python numbers and strings, and arrays and tuples by lists, at any depth."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def plain_scalars(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that NumPy scalars among its arguments reach it as Python numbers."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = [_plain_scalar(value) for value in args]
        named: Any = {name: _plain_scalar(value) for name, value in kwargs.items()}
        return function(*given, **named)

    return called


def _plain_scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
