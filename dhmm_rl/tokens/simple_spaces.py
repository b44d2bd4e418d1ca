"""
Spaces with values that are one array: Box, Discrete, MultiDiscrete, MultiBinary, Text, and two of this project.

Shapes: F fields; ``...`` any leading shape.
"""

import itertools
import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.fields import KINDS, Kind, Leaf, cast, flatten, leaves_of, space_from_dict, space_to_dict, unflatten

MAX_STRINGS = 4096
"""A mission space with more missions than this is treated as free text."""


class Strings(spaces.Space[str]):
    """
    A space of some strings. MiniGrid's MissionSpace is such a space, and is saved as one.

    :param values: strings of the space, in the order of their categories
    """

    def __init__(self, values: list[str]) -> None:
        super().__init__(None, str)
        self.values = tuple(values)
        self.index = {value: i for i, value in enumerate(self.values)}

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw one of the strings."""
        return self.values[int(self.np_random.integers(len(self.values)))]

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is one of the strings."""
        return isinstance(x, str) and x in self.index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Strings) and self.values == other.values

    def __repr__(self) -> str:
        return f"Strings({len(self.values)})"


class FieldSpace(spaces.Box):
    """
    The field values of another space as one array (F,). SB3's vector environments need it, since they hold arrays only.

    :param space: the other space
    :raises InputError: for a space that cannot be tokenized
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        leaves = leaves_of(space, "observation")
        dtype: Any = np.result_type(*(leaf.dtype for leaf in leaves))
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-np.inf, np.inf)
        super().__init__(low, high, (sum(leaf.size for leaf in leaves),), dtype.type)
        self.space = space

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldSpace) and bool(self.space == other.space)

    def __repr__(self) -> str:
        return f"FieldSpace({self.space})"


class _Box(Kind):
    def leaves(self, space: spaces.Box, name: str) -> list[Leaf]:
        kind = "real" if np.issubdtype(space.dtype, np.floating) else "integer"
        low, high = (_plain(bound) for bound in (space.low, space.high))
        return [Leaf(name, kind, low, high, np.dtype(space.dtype))]

    def flatten(self, space: spaces.Box, value: Any) -> NDArray[Any]:
        return _flat(value, space.shape)

    def unflatten(self, space: spaces.Box, values: NDArray[Any]) -> Any:
        return cast(_shaped(values, space.shape), space.dtype)

    def to_dict(self, space: spaces.Box) -> dict[str, Any]:
        bounds = {"low": _numbers(space.low), "high": _numbers(space.high)}
        return {"dtype": str(space.dtype), "shape": list(space.shape), **bounds}

    def from_dict(self, description: dict[str, Any]) -> spaces.Box:
        dtype = np.dtype(description["dtype"])
        low, high = (np.array(description[bound], dtype=dtype) for bound in ("low", "high"))
        shape = tuple(description.get("shape", low.shape))
        low, high = (np.broadcast_to(bound, shape).copy() for bound in (low, high))
        kind: Any = dtype.type
        space: spaces.Box = spaces.Box(low, high, shape, kind)
        return space


class _FieldSpace(Kind):
    def leaves(self, space: FieldSpace, name: str) -> list[Leaf]:
        return leaves_of(space.space, name)

    def flatten(self, space: FieldSpace, value: Any) -> NDArray[Any]:
        return np.asarray(value)

    def unflatten(self, space: FieldSpace, values: NDArray[Any]) -> Any:
        return flatten(space.space, unflatten(space.space, values)).astype(space.dtype)  # whole numbers stay whole

    def to_dict(self, space: FieldSpace) -> dict[str, Any]:
        return {"space": space_to_dict(space.space)}

    def from_dict(self, description: dict[str, Any]) -> FieldSpace:
        return FieldSpace(space_from_dict(description["space"]))


class _Discrete(Kind):
    def leaves(self, space: spaces.Discrete[Any], name: str) -> list[Leaf]:
        low = np.array(int(space.start))
        return [Leaf(name, "categorical", low, low + int(space.n) - 1, np.dtype(space.dtype))]

    def flatten(self, space: spaces.Discrete[Any], value: Any) -> NDArray[Any]:
        return np.asarray(value)[..., None]

    def unflatten(self, space: spaces.Discrete[Any], values: NDArray[Any]) -> Any:
        return cast(values[..., 0], space.dtype)[()]

    def to_dict(self, space: spaces.Discrete[Any]) -> dict[str, Any]:
        return {"n": int(space.n), "start": int(space.start), "dtype": str(np.dtype(space.dtype))}

    def from_dict(self, description: dict[str, Any]) -> spaces.Discrete[Any]:
        dtype = np.dtype(description.get("dtype", "int64")).type
        return spaces.Discrete(description["n"], start=description["start"], dtype=dtype)


class _MultiDiscrete(Kind):
    def leaves(self, space: spaces.MultiDiscrete, name: str) -> list[Leaf]:
        low = space.start.astype(np.int64)
        return [Leaf(name, "categorical", low, low + space.nvec - 1, np.dtype(space.dtype))]

    def flatten(self, space: spaces.MultiDiscrete, value: Any) -> NDArray[Any]:
        return _flat(value, space.shape)

    def unflatten(self, space: spaces.MultiDiscrete, values: NDArray[Any]) -> Any:
        return cast(_shaped(values, space.shape), space.dtype)

    def to_dict(self, space: spaces.MultiDiscrete) -> dict[str, Any]:
        return {"nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": str(space.dtype)}

    def from_dict(self, description: dict[str, Any]) -> spaces.MultiDiscrete:
        dtype = np.dtype(description.get("dtype", "int64")).type
        return spaces.MultiDiscrete(np.array(description["nvec"]), dtype=dtype, start=np.array(description["start"]))


class _MultiBinary(Kind):
    def leaves(self, space: spaces.MultiBinary, name: str) -> list[Leaf]:
        low = np.zeros(space.shape, dtype=np.int64)
        return [Leaf(name, "categorical", low, low + 1, np.dtype(space.dtype))]

    def flatten(self, space: spaces.MultiBinary, value: Any) -> NDArray[Any]:
        return _flat(value, space.shape)

    def unflatten(self, space: spaces.MultiBinary, values: NDArray[Any]) -> Any:
        return cast(_shaped(values, space.shape), space.dtype)

    def to_dict(self, space: spaces.MultiBinary) -> dict[str, Any]:
        return {"n": np.array(space.n).tolist()}

    def from_dict(self, description: dict[str, Any]) -> spaces.MultiBinary:
        return spaces.MultiBinary(description["n"])


class _Text(Kind):
    """One field per character: its index among the space's characters plus 1, and 0 after the end of the text."""

    def leaves(self, space: spaces.Text, name: str) -> list[Leaf]:
        low = np.zeros(space.max_length, dtype=np.int64)
        characters = tuple(space.character_list)
        return [Leaf(name, "categorical", low, low + len(characters), np.dtype(np.int64), characters)]

    def flatten(self, space: spaces.Text, value: Any) -> NDArray[Any]:
        texts = np.asarray(value, dtype=str)
        length = texts.dtype.itemsize // 4
        if length > space.max_length:
            raise InputError(f"a text has {length} characters; its space has at most {space.max_length}")
        codes = texts.astype(f"<U{space.max_length}")[..., None].view(np.uint32)
        known = np.array([0, *map(ord, space.character_list)], dtype=np.uint32)
        order = known.argsort()
        index: NDArray[Any] = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        if (known[index] != codes).any():
            raise InputError(f"a text holds {chr(codes[known[index] != codes].flat[0])!r}, which its space does not have")
        return index

    def unflatten(self, space: spaces.Text, values: NDArray[Any]) -> Any:
        known = np.array([0, *map(ord, space.character_list)], dtype=np.uint32)
        ended = np.cumsum(values == 0, axis=-1) > 0
        codes = np.where(ended, 0, known[values.astype(np.int64)]).astype(np.uint32)
        texts = np.ascontiguousarray(codes).view(f"<U{space.max_length}")[..., 0]
        return str(texts) if texts.ndim == 0 else texts

    def to_dict(self, space: spaces.Text) -> dict[str, Any]:
        return {"max_length": space.max_length, "min_length": space.min_length, "charset": "".join(space.character_list)}

    def from_dict(self, description: dict[str, Any]) -> spaces.Text:
        return spaces.Text(description["max_length"], min_length=description["min_length"], charset=description["charset"])


class _Strings(Kind):
    def leaves(self, space: Any, name: str) -> list[Leaf]:
        values = strings_of(space, name).values
        low = np.array(0)
        return [Leaf(name, "categorical", low, low + len(values) - 1, np.dtype(np.int64), values)]

    def flatten(self, space: Any, value: Any) -> NDArray[Any]:
        index, texts = strings_of(space).index, np.asarray(value)
        try:
            numbers = [index[text] for text in texts.ravel().tolist()]
        except KeyError as error:
            raise InputError(f"the string {error} is not one of the {len(index)} strings of its space") from None
        return np.array(numbers).reshape(*texts.shape, 1)

    def unflatten(self, space: Any, values: NDArray[Any]) -> Any:
        texts = np.array(strings_of(space).values)[values[..., 0].astype(np.int64)]
        return str(texts) if texts.ndim == 0 else texts

    def to_dict(self, space: Any) -> dict[str, Any]:
        return {"values": list(strings_of(space).values)}

    def from_dict(self, description: dict[str, Any]) -> Strings:
        return Strings(description["values"])


def strings_of(space: Any, name: str = "the mission") -> Strings:
    """
    Enumerate the missions of a MissionSpace.

    :param space: a MissionSpace, or a :class:`Strings`, which is returned as it is
    :param name: name of the space, for errors
    :raises InputError: for a space that does not list its missions, such as BabyAI's
    """
    if isinstance(space, Strings):
        return space
    placeholders = space.ordered_placeholders or []
    if math.prod(map(len, placeholders)) > MAX_STRINGS or space.contains("\0"):
        raise InputError(
            f"{name} is free text without a largest length; declare one: dhmm_rl.envs.FlattenFields(env, size=128)"
        )
    return Strings(list(dict.fromkeys(space.mission_func(*words) for words in itertools.product(*placeholders))))


def _flat(value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Reshape values (..., *shape) to field values (..., F)."""
    array = np.asarray(value)
    if len(shape) == 1 and array.shape[-1:] == shape:
        return array
    lead = array.shape[: array.ndim - len(shape)]
    if array.shape[len(lead) :] != shape:
        raise InputError(f"a value has shape {array.shape}; its space has {shape}")
    return array.reshape((*lead, math.prod(shape)))


def _shaped(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Invert :func:`_flat`."""
    return values.reshape((*values.shape[:-1], *shape))


def _plain(bound: NDArray[Any]) -> NDArray[Any]:
    """Return bounds as float64 or int64, which arithmetic does not overflow as easily as bytes and booleans."""
    return bound.astype(np.float64 if bound.dtype.kind == "f" or bound.dtype == np.uint64 else np.int64)


def _numbers(values: NDArray[Any]) -> Any:
    """Return numbers for JSON: infinity as a text, and a single number where all are equal."""
    plain = values.ravel()[:1] if values.size and (values == values.ravel()[0]).all() else values.ravel()
    numbers = [value if math.isfinite(value) else str(value) for value in plain.tolist()]
    if len(plain) < values.size or values.ndim == 0:
        return numbers[0]
    return np.array(numbers, dtype=object).reshape(values.shape).tolist()


KINDS.update(
    Box=_Box(),
    FieldSpace=_FieldSpace(),
    Discrete=_Discrete(),
    MultiDiscrete=_MultiDiscrete(),
    MultiBinary=_MultiBinary(),
    Text=_Text(),
    Strings=_Strings(),
)
KINDS["MissionSpace"] = KINDS["Strings"]
