"""
Values of a space as arrays of rows, which is how rollouts hold them, and back.

Shapes: R rows, F fields of a space; ``...`` any leading shape.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens import FieldSpace
from dhmm_rl.tokens.fields import cast, flatten, leaves_of, unflatten

ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""The spaces of which several values make one array."""


def pack(space: spaces.Space[Any], values: Any) -> NDArray[Any]:
    """
    Pack values of a space into one array.

    :param space: space of the values
    :param values: values, with any leading shape
    :return: the values themselves where these are arrays; for a composite space (Dict, Tuple, …) the values of its fields,
        (..., F). If the fields have several types, and storing each in its own takes at most half the memory, the result is a
        structured array (...), with one entry (f,) for each type
    :raises InputError: for an integer field that is NaN or infinite
    """
    if _is_array_space(space):
        return np.asarray(values)
    flat, columns = flatten(space, values), _columns_by_type(space)
    for dtype, chosen in columns.items():
        if dtype.kind in "iu" and flat.dtype.kind == "f" and not np.isfinite(flat[..., chosen]).all():
            raise InputError(f"a field of {space} is NaN or infinite; it must be a whole number")
    row_type = _row_type(columns)
    if not row_type.names:
        return cast(flat, row_type)
    packed = np.empty(flat.shape[:-1], row_type)
    for dtype, chosen in columns.items():
        packed[dtype.name] = cast(flat[..., chosen], dtype)
    return packed


def unpack(space: spaces.Space[Any], packed: NDArray[Any]) -> Any:
    """
    Invert :func:`pack`.

    :param space: space of the values
    :param packed: result of :func:`pack`; older files hold one array of all fields' values (..., F) instead
    :return: values of the space, with any leading shape
    """
    if _is_array_space(space):
        return packed
    if packed.dtype.names:
        columns = _columns_by_type(space)
        flat = np.empty((*packed.shape, *packed_shape(space)), np.result_type(*columns))
        for dtype, chosen in columns.items():
            flat[..., chosen] = packed[dtype.name]
        packed = flat
    return packed if isinstance(space, FieldSpace) else unflatten(space, packed)


def packed_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Return the shape of one packed value: the value's own, or (F,) for a composite space."""
    if isinstance(space, ARRAY_SPACES):
        return space.shape or ()
    return (sum(leaf.size for leaf in leaves_of(space, "value")),)


def is_packed(space: spaces.Space[Any], array: NDArray[Any]) -> bool:
    """Whether an array has the type and shape of R values that :func:`pack` packed, or of their fields' values, (R, F)."""
    if array.dtype.names:
        return not _is_array_space(space) and array.ndim == 1 and array.dtype == _row_type(_columns_by_type(space))
    return array.shape[1:] == packed_shape(space) and array.dtype.kind in "biuf"


def concatenate_packed(space: spaces.Space[Any], arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """
    Concatenate packed arrays along their rows.

    :param space: space of the values
    :param arrays: packed arrays; from older files, some may hold all fields as floats
    """
    structured = [bool(array.dtype.names) for array in arrays]
    if any(structured) and not all(structured):
        arrays = [pack(space, unpack(space, array)) for array in arrays]
    return np.concatenate(arrays)


def _is_array_space(space: spaces.Space[Any]) -> bool:
    return isinstance(space, ARRAY_SPACES) and not isinstance(space, FieldSpace)


def _columns_by_type(space: spaces.Space[Any]) -> dict[np.dtype[Any], NDArray[np.int64]]:
    """Return the indices of the fields of each type, in the order in which the types first occur."""
    leaves = leaves_of(space, "value")
    types = list(dict.fromkeys(leaf.dtype for leaf in leaves))
    type_of_field = np.repeat([types.index(leaf.dtype) for leaf in leaves], [leaf.size for leaf in leaves])
    return {dtype: np.flatnonzero(type_of_field == i) for i, dtype in enumerate(types)}


def _row_type(columns: dict[np.dtype[Any], NDArray[np.int64]]) -> np.dtype[Any]:
    """Return one type for all fields, or an entry for each type where that takes at most half the memory."""
    common, num_fields = np.result_type(*columns), sum(map(len, columns.values()))
    structured = np.dtype([(dtype.name, dtype, (len(chosen),)) for dtype, chosen in columns.items()])
    return structured if 2 * structured.itemsize <= common.itemsize * num_fields else common
