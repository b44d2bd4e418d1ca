"""
The fields of a Gymnasium space: its scalars, in a fixed order, each with a readable name.

A kind of space is supported when it is in :data:`KINDS`. Simple kinds are in ``simple_spaces.py``, kinds that consist of other
spaces in ``composite_spaces.py``. Importing the package fills :data:`KINDS`.

Shapes: F fields of a space; ``...`` any leading shape. Several values of a space are one array; for a Dict, a dict of arrays;
for a Tuple, a tuple of arrays. If the values of a space differ in size (OneOf, sequences, graphs), several values are a list or
an object array.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.plain import plain

UNBOUNDED_RANGE = 1e6
"""A range of at least this width counts as unbounded."""
IMAGE_SIDE = 16
"""Smallest height and width, in pixels, of an array of bytes that counts as an image instead of a grid of categories."""


@dataclass(frozen=True)
class Field:
    """
    One scalar of an observation or action, as its space declares it.

    :param name: name of the field, which says where it is in the space, e.g. ``observation[2]``
    :param kind: ``real``, ``integer`` (numbers, with an order) or ``categorical``
    :param low: lowest value, or the first category
    :param high: highest value, or the last category
    """

    name: str
    kind: str
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether uniform bins between the bounds make sense: the bounds are finite and not extremely far apart."""
        return math.isfinite(self.low) and math.isfinite(self.high) and self.high - self.low < UNBOUNDED_RANGE


@dataclass(frozen=True, eq=False)
class Leaf:
    """
    A part of a space that is one array of fields.

    :param name: name of the array, e.g. ``observation.image``
    :param kind: kind of all its fields; see :class:`Field`
    :param low: lowest values, in the array's shape
    :param high: highest values, in the array's shape
    :param dtype: type of its values in the space
    :param labels: strings or characters that the categories stand for; empty where they stand for numbers
    """

    name: str
    kind: str
    low: NDArray[Any]
    high: NDArray[Any]
    dtype: np.dtype[Any]
    labels: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Leaf)
            and (self.name, self.kind, self.shape, self.labels) == (other.name, other.kind, other.shape, other.labels)
            and np.array_equal(self.low, other.low)
            and np.array_equal(self.high, other.high)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.low.shape

    @property
    def size(self) -> int:
        """The number of fields."""
        return self.low.size

    @cached_property
    def fields(self) -> list[Field]:
        """The fields, named by their index in the array, ``observation.image[3,4,0]``; a scalar's field is named like it."""
        bounds = zip(np.ndindex(self.shape), self.low.ravel().tolist(), self.high.ravel().tolist(), strict=True)
        return [Field(self.field_name(index), self.kind, low, high) for index, low, high in bounds]

    def field_name(self, index: tuple[int, ...]) -> str:
        """Return the name of the field at an index of the array."""
        return f"{self.name}[{','.join(map(str, index))}]" if self.shape else self.name

    def layer_name(self, channel: int) -> str:
        """Return the name of all fields of one channel together, ``observation.image[:,:,0]``."""
        return f"{self.name}[{':,' * (len(self.shape) - 1)}{channel}]"

    @property
    def pixels(self) -> bool:
        """Whether the array can be cut into patches: bytes, of 2 or 3 dimensions."""
        return self.dtype == np.uint8 and len(self.shape) in (2, 3)

    @property
    def image(self) -> bool:
        """Whether the array looks like an image: bytes, tall and wide."""
        return self.pixels and sorted(self.shape)[-2] >= IMAGE_SIDE


class Kind(ABC):
    """Everything that tokens need of one kind of space. Spaces are of type ``Any``, since each kind is given only its own."""

    @abstractmethod
    def leaves(self, space: Any, name: str) -> list[Leaf]:
        """Return the arrays that a value consists of, in order."""

    @abstractmethod
    def flatten(self, space: Any, value: Any) -> NDArray[Any]:
        """Return the field values (..., F) of values."""

    @abstractmethod
    def unflatten(self, space: Any, values: NDArray[Any]) -> Any:
        """Return the values of field values (..., F)."""

    @abstractmethod
    def to_dict(self, space: Any) -> dict[str, Any]:
        """Return what :meth:`from_dict` needs, for JSON."""

    @abstractmethod
    def from_dict(self, description: dict[str, Any]) -> spaces.Space[Any]:
        """Make a space from what :meth:`to_dict` returned."""


KINDS: dict[str, Kind] = {}
"""Supported kinds, by the name of the space's class, so that spaces of optional packages can be here too."""


def kind_of(space: spaces.Space[Any], name: str = "value") -> Kind:
    """
    Return the kind of a space.

    :param space: any space
    :param name: name of the space, for errors
    :raises InputError: for a space of an unknown kind
    """
    for cls in type(space).__mro__:
        if cls.__name__ in KINDS:
            return KINDS[cls.__name__]
    raise InputError(
        f"{name} is a {type(space).__name__}; spaces that can be tokenized are {', '.join(KINDS)}: turn it into one of these "
        "with gymnasium.wrappers.TransformObservation or TransformAction"
    )


def leaves_of(space: spaces.Space[Any], name: str) -> list[Leaf]:
    """
    Return the arrays of fields that a space consists of, in the space's own order.

    :param space: a space of a supported kind
    :param name: name of the space, with which the names of the fields begin, e.g. ``observation``
    :raises InputError: for a space that cannot be tokenized
    """
    return kind_of(space, name).leaves(space, name)


def fields_of(space: spaces.Space[Any], name: str) -> list[Field]:
    """Return all fields of a space; like :func:`leaves_of`."""
    return [field for leaf in leaves_of(space, name) for field in leaf.fields]


def flatten(space: spaces.Space[Any], value: Any) -> NDArray[Any]:
    """Return values of a space, with any leading shape, as one array of field values (..., F)."""
    return kind_of(space).flatten(space, value)


def unflatten(space: spaces.Space[Any], values: NDArray[Any]) -> Any:
    """Return field values (..., F) as values of the space, in its own type."""
    return kind_of(space).unflatten(space, values)


def space_to_dict(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a space for JSON."""
    kind = kind_of(space, "the space")
    name = next(name for name, known in KINDS.items() if known is kind)
    return {"type": name, **plain(kind.to_dict(space))}


def space_from_dict(description: dict[str, Any]) -> spaces.Space[Any]:
    """Invert :func:`space_to_dict`."""
    return KINDS[description["type"]].from_dict(description)


def num_fields(space: spaces.Space[Any]) -> int:
    """Return the number of fields of a space."""
    return sum(leaf.size for leaf in leaves_of(space, ""))


def cast(values: NDArray[Any], dtype: np.dtype[Any] | type[Any]) -> NDArray[Any]:
    """Convert field values to a space's own type; for whole numbers, round and clip to what the type can hold."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(dtype)
        rounded = np.rint(values)
        inside = np.clip(rounded, info.min, info.max).astype(dtype)  # the largest int64 has no float: it is put back
        return np.where(rounded >= float(info.max), np.array(info.max, dtype), inside)
    return values.astype(dtype)
