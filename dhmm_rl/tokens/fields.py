"""
From a Gymnasium space to its fields: one scalar each, in a fixed order, with a name that people can read.

A kind of space is supported when it has an entry in :data:`_KINDS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError


@dataclass(frozen=True)
class Field:
    """
    One scalar of an observation or action, as its space declares it.

    :param name: where it lies, e.g. ``observation[2]``
    :param kind: ``real`` or ``categorical``
    :param low: lowest value; of a categorical field, its first category
    :param high: highest value; of a categorical field, its last category
    """

    name: str
    kind: str
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether uniform bins between the bounds make sense: they are finite and not absurdly wide."""
        return math.isfinite(self.low) and math.isfinite(self.high) and self.high - self.low < 1e6


class _Kind(NamedTuple):
    fields: Callable[[Any, str], list[Field]]
    flatten: Callable[[Any, Any], NDArray[Any]]
    unflatten: Callable[[Any, NDArray[Any]], Any]
    describe: Callable[[Any], dict[str, Any]]
    restore: Callable[[dict[str, Any]], spaces.Space[Any]]


def _box_fields(space: spaces.Box, name: str) -> list[Field]:
    if len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise InputError(
            f"{name} is a Box of shape {space.shape} and type {space.dtype}; only one-dimensional Boxes of floats can be "
            "tokenised: wrap the environment in gymnasium.wrappers.FlattenObservation or DtypeObservation"
        )
    return [
        Field(f"{name}[{i}]", "real", float(low), float(high))
        for i, (low, high) in enumerate(zip(space.low, space.high, strict=True))
    ]


def _discrete_fields(space: spaces.Discrete[Any], name: str) -> list[Field]:
    return [Field(name, "categorical", float(space.start), float(space.start + space.n - 1))]


def _multi_discrete_fields(space: spaces.MultiDiscrete, name: str) -> list[Field]:
    if space.nvec.ndim != 1:
        raise InputError(f"{name} is a MultiDiscrete of shape {space.shape}; only one-dimensional ones can be tokenised")
    return [
        Field(f"{name}[{i}]", "categorical", float(start), float(start + n - 1))
        for i, (start, n) in enumerate(zip(space.start, space.nvec, strict=True))
    ]


def _unflatten_tuple(space: spaces.Tuple[Any], values: NDArray[Any]) -> tuple[Any, ...]:
    ends = np.cumsum([len(fields_of(part, "")) for part in space.spaces])[:-1]
    return tuple(unflatten(part, some) for part, some in zip(space.spaces, np.split(values, ends, axis=-1), strict=True))


def _numbers(values: NDArray[Any]) -> list[float | str]:
    """Floats for JSON, which has no infinity."""
    return [value if math.isfinite(value) else str(value) for value in values.astype(float).tolist()]


_KINDS: dict[str, _Kind] = {
    "Box": _Kind(
        fields=_box_fields,
        flatten=lambda space, value: np.asarray(value),
        unflatten=lambda space, values: values.astype(space.dtype),
        describe=lambda space: {"dtype": str(space.dtype), "low": _numbers(space.low), "high": _numbers(space.high)},
        restore=lambda d: spaces.Box(
            np.array(d["low"], dtype=d["dtype"]), np.array(d["high"], dtype=d["dtype"]), dtype=np.dtype(d["dtype"]).type
        ),
    ),
    "Discrete": _Kind(
        fields=_discrete_fields,
        flatten=lambda space, value: np.asarray(value)[..., None],
        unflatten=lambda space, values: values[..., 0].astype(space.dtype),
        describe=lambda space: {"n": int(space.n), "start": int(space.start)},
        restore=lambda d: spaces.Discrete(d["n"], start=d["start"]),
    ),
    "MultiDiscrete": _Kind(
        fields=_multi_discrete_fields,
        flatten=lambda space, value: np.asarray(value),
        unflatten=lambda space, values: values.astype(space.dtype),
        describe=lambda space: {"nvec": space.nvec.tolist(), "start": space.start.tolist()},
        restore=lambda d: spaces.MultiDiscrete(d["nvec"], start=d["start"]),
    ),
    "Tuple": _Kind(
        fields=lambda space, name: [f for i, part in enumerate(space.spaces) for f in fields_of(part, f"{name}[{i}]")],
        flatten=lambda space, value: np.concatenate(
            [flatten(part, some) for part, some in zip(space.spaces, value, strict=True)], axis=-1
        ),
        unflatten=_unflatten_tuple,
        describe=lambda space: {"spaces": [space_to_dict(part) for part in space.spaces]},
        restore=lambda d: spaces.Tuple([space_from_dict(part) for part in d["spaces"]]),
    ),
}


def _kind(space: spaces.Space[Any], name: str) -> _Kind:
    for kind_name, kind in _KINDS.items():
        if isinstance(space, getattr(spaces, kind_name)):
            return kind
    raise InputError(f"{name} is a {type(space).__name__}; spaces that can be tokenised are {', '.join(_KINDS)}")


def fields_of(space: spaces.Space[Any], name: str) -> list[Field]:
    """
    The fields of a space, in the space's own order.

    :param space: Box or MultiDiscrete of one dimension, Discrete, or a Tuple of these
    :param name: what errors and plots call the space, e.g. ``observation``
    :raises InputError: for a space that cannot be tokenised
    """
    return _kind(space, name).fields(space, name)


def flatten(space: spaces.Space[Any], value: Any) -> NDArray[Any]:
    """Values of a space, with any leading shape (a Tuple's: each part's), as one array of field values (..., F)."""
    return _kind(space, "value").flatten(space, value)


def unflatten(space: spaces.Space[Any], values: NDArray[Any]) -> Any:
    """Field values (..., F) as values of the space, in its own type."""
    return _kind(space, "value").unflatten(space, values)


def space_to_dict(space: spaces.Space[Any]) -> dict[str, Any]:
    """A description of a space that JSON can hold."""
    kind = _kind(space, "space")
    name = next(name for name, known in _KINDS.items() if known is kind)
    return {"type": name, **kind.describe(space)}


def space_from_dict(description: dict[str, Any]) -> spaces.Space[Any]:
    """Invert :func:`space_to_dict`."""
    return _KINDS[description["type"]].restore(description)
