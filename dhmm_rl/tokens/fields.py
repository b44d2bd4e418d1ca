"""
From a Gymnasium space to its fields: one scalar each, in a fixed order, with a name that people can read.

A kind of space is supported when it is in :data:`KINDS`: simple ones are in ``simple_spaces.py``, those made of others in
``composite_spaces.py``. Importing the package fills it.

Shapes: F fields of a space; ``...`` any leading shape. Several values of a space are one array; of a Dict, a dict of them; of a
Tuple, a tuple of them. Where values differ in size (OneOf, sequences, graphs), several of them are a list or an object array.
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
"""Bounds as wide as this are none."""
IMAGE_SIDE = 16
"""Pixels from which on an array of bytes is an image and no grid of categories."""


@dataclass(frozen=True)
class Field:
    """
    One scalar of an observation or action, as its space declares it.

    :param name: where it lies, e.g. ``observation[2]``
    :param kind: ``real``, ``integer`` (numbers, with an order) or ``categorical``
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
        return math.isfinite(self.low) and math.isfinite(self.high) and self.high - self.low < UNBOUNDED_RANGE


@dataclass(frozen=True, eq=False)
class Leaf:
    """
    A part of a space that is one array of fields.

    :param name: e.g. ``observation.image``
    :param kind: of all its fields; see :class:`Field`
    :param low: lowest values, in the array's shape
    :param high: highest values, in the array's shape
    :param dtype: of its values
    :param labels: what the categories stand for, where that is not told by numbers
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
        """Of the array."""
        return self.low.shape

    @property
    def size(self) -> int:
        """How many fields it has."""
        return self.low.size

    @cached_property
    def fields(self) -> list[Field]:
        """Its fields: named by their place in the array, ``observation.image[3,4,0]``, or ``action`` where there is but one."""
        bounds = zip(np.ndindex(self.shape), self.low.ravel().tolist(), self.high.ravel().tolist(), strict=True)
        return [Field(self.field_name(index), self.kind, low, high) for index, low, high in bounds]

    def field_name(self, index: tuple[int, ...]) -> str:
        """What the field at a place of the array is called."""
        return f"{self.name}[{','.join(map(str, index))}]" if self.shape else self.name

    def layer_name(self, channel: int) -> str:
        """What all fields of one channel together are called, ``observation.image[:,:,0]``."""
        return f"{self.name}[{':,' * (len(self.shape) - 1)}{channel}]"

    @property
    def pixels(self) -> bool:
        """Whether it can be cut into patches."""
        return self.dtype == np.uint8 and len(self.shape) in (2, 3)

    @property
    def image(self) -> bool:
        """Whether it looks like pixels: bytes, tall and wide."""
        return self.pixels and sorted(self.shape)[-2] >= IMAGE_SIDE


class Kind(ABC):
    """What there is to know about one kind of space. Spaces are of type ``Any``: each kind meets only its own."""

    @abstractmethod
    def leaves(self, space: Any, name: str) -> list[Leaf]:
        """The arrays that a value consists of, in order."""

    @abstractmethod
    def flatten(self, space: Any, value: Any) -> NDArray[Any]:
        """Values to field values (..., F)."""

    @abstractmethod
    def unflatten(self, space: Any, values: NDArray[Any]) -> Any:
        """Field values (..., F) to values."""

    @abstractmethod
    def to_dict(self, space: Any) -> dict[str, Any]:
        """What :meth:`from_dict` needs, for JSON."""

    @abstractmethod
    def from_dict(self, description: dict[str, Any]) -> spaces.Space[Any]:
        """The space again."""


KINDS: dict[str, Kind] = {}
"""By the name of the space's class, so that spaces of optional packages can be here too."""


def kind_of(space: spaces.Space[Any], name: str = "value") -> Kind:
    """
    What a space is.

    :raises InputError: when it is of no kind that is known
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
    The arrays of fields that a space consists of, in the space's own order.

    :param space: any that is known
    :param name: what errors and plots call the space, e.g. ``observation``
    :raises InputError: for a space that cannot be tokenized
    """
    return kind_of(space, name).leaves(space, name)


def fields_of(space: spaces.Space[Any], name: str) -> list[Field]:
    """All fields of a space; like :func:`leaves_of`."""
    return [field for leaf in leaves_of(space, name) for field in leaf.fields]


def flatten(space: spaces.Space[Any], value: Any) -> NDArray[Any]:
    """Values of a space, with any leading shape, as one array of field values (..., F)."""
    return kind_of(space).flatten(space, value)


def unflatten(space: spaces.Space[Any], values: NDArray[Any]) -> Any:
    """Field values (..., F) as values of the space, in its own type."""
    return kind_of(space).unflatten(space, values)


def space_to_dict(space: spaces.Space[Any]) -> dict[str, Any]:
    """A description of a space that JSON can hold."""
    kind = kind_of(space, "the space")
    name = next(name for name, known in KINDS.items() if known is kind)
    return {"type": name, **plain(kind.to_dict(space))}


def space_from_dict(description: dict[str, Any]) -> spaces.Space[Any]:
    """Invert :func:`space_to_dict`."""
    return KINDS[description["type"]].from_dict(description)


def width(space: spaces.Space[Any]) -> int:
    """How many fields a space has."""
    return sum(leaf.size for leaf in leaves_of(space, ""))


def cast(values: NDArray[Any], dtype: np.dtype[Any] | type[Any]) -> NDArray[Any]:
    """Field values in a space's own type: whole numbers rounded, and none beyond what the type can hold."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(dtype)
        rounded = np.rint(values)
        inside = np.clip(rounded, info.min, info.max).astype(dtype)  # the largest int64 has no float: it is put back
        return np.where(rounded >= float(info.max), np.array(info.max, dtype), inside)
    return values.astype(dtype)
