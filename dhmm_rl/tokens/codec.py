"""
Codec of one space: field values to ids and back, with one call for all fields that are quantized in the same way.

Shapes: F fields and S slots of the space; f and s those of one group; ``...`` any leading shape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.fields import Leaf
from dhmm_rl.tokens.images import Codebook
from dhmm_rl.tokens.plan import MAX_SLOTS, FieldPlan, Settings, plan_fields, plan_image

Index = slice | NDArray[np.int64]


class Quantizer(Protocol):
    """Maps values of some fields (..., f) to local ids (..., s), which count from 0 in each slot, and back."""

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]: ...

    def decode(self, local: NDArray[Any]) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Categories:
    """
    Fields of whole numbers from a first to a last category; any other value is an error.

    :param names: names of the fields, for errors
    :param first: first category of each field, (f,)
    :param counts: number of categories of each field, (f,)
    """

    names: Sequence[str]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """
        Return local ids (..., f).

        :raises InputError: for a value that is not one of its field's categories
        """
        local = values - self.first
        wrong = (local < 0) | (local >= self.counts)
        if local.dtype.kind == "f":
            wrong |= local != np.floor(local)
        if wrong.any():
            where = tuple(np.argwhere(wrong)[0])
            j = where[-1]
            last = self.first[j] + self.counts[j] - 1
            raise InputError(f"{self.names[j]} is {values[where]:g}; its categories go from {self.first[j]} to {last}")
        return local.astype(np.int64)

    def decode(self, local: NDArray[Any]) -> NDArray[Any]:
        return local + self.first


@dataclass(frozen=True, eq=False)
class Values:
    """
    Fields with a small set of values each; any other value goes to the nearest one.

    :param values: values of each field in increasing order; for fields that have fewer than n, the last one is repeated, (f, n)
    """

    values: NDArray[np.float64]

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> "Values":
        """Build from one sequence of values per field."""
        longest = max(map(len, values))
        padded = [[*some, *[some[-1]] * (longest - len(some))] for some in values]
        return cls(np.array(padded, dtype=np.float64))

    @cached_property
    def midpoints(self) -> NDArray[np.float64]:
        """Midpoints between neighboring values, (f, n - 1); infinite where there is no next value."""
        middle = (self.values[:, 1:] + self.values[:, :-1]) / 2
        return np.where(self.values[:, 1:] > self.values[:, :-1], middle, np.inf)

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        local = np.zeros(values.shape, dtype=np.int64)
        # A value's id is the number of midpoints below it. The loop is over values, of which these fields have few.
        for midpoint in self.midpoints.T:
            local += values > midpoint
        return local

    def decode(self, local: NDArray[Any]) -> NDArray[Any]:
        values: NDArray[np.float64] = self.values[np.arange(len(self.values)), local]
        return values


class UnfittedCodebook(NamedTuple):
    """
    The quantizer of an image before its codebook is fitted; using it is an error that says what to do.

    :param name: name of the image
    """

    name: str

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        raise InputError(
            f"{self.name} is an image, so its patches need a codebook: tokenizer = tokenizer.fit(data), with rollouts or "
            "dhmm_rl.data.random_observations(env) as data"
        )

    def decode(self, local: NDArray[Any]) -> NDArray[Any]:
        return self.encode(local)


class FieldGroup(NamedTuple):
    """
    Fields that are quantized together.

    :param columns: indices of the fields, f of F
    :param slots: indices of their slots, s of S
    :param quantizer: quantizer of these fields
    """

    columns: Index
    slots: Index
    quantizer: Quantizer


class Codec:
    """
    Encodes and decodes all fields of one space.

    :param leaves: arrays of fields that the space consists of
    :param settings: settings by name; see :mod:`dhmm_rl.tokens.plan`
    :param bins: number of bins of a real field, where settings do not say
    :param codebooks: codes of images, by name of the image
    :param first_id: first id of the first slot
    :raises InputError: for settings that do not fit the space, and for too many slots
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        settings: Mapping[str, Settings],
        bins: int,
        codebooks: Mapping[str, NDArray[np.uint8]],
        first_id: int,
    ) -> None:
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.ordinal: list[bool] = []
        self.leaf_slots: dict[str, range] = {}
        """The slots of each leaf, by its name."""
        images: list[FieldGroup] = []
        fields: list[tuple[int, int, FieldPlan]] = []
        self.num_fields = 0
        for leaf in leaves:
            # An image has one slot per patch, any other array one slot per field.
            image, first = plan_image(leaf, settings), len(self.names)
            columns = slice(self.num_fields, self.num_fields + leaf.size)
            if image is not None:
                patches, size = image
                codes = codebooks.get(leaf.name)
                names = [f"{leaf.name}{name}" for name in patches.names]
                self._add(names, [size if codes is None else len(codes)] * len(names), [False] * len(names))
                quantizer: Quantizer = UnfittedCodebook(leaf.name) if codes is None else Codebook(patches, codes)
                images.append(FieldGroup(columns, slice(first, len(self.names)), quantizer))
            else:
                plans = plan_fields(leaf, settings, bins)
                self._add([p.name for p in plans], [p.size for p in plans], [p.binned for p in plans])
                fields += [(columns.start + i, first + i, plan) for i, plan in enumerate(plans)]
            self.num_fields += leaf.size
            self.leaf_slots[leaf.name] = range(first, len(self.names))
        if len(self.names) > MAX_SLOTS:
            raise InputError(
                f"{len(self.names)} slots a step are more than {MAX_SLOTS}; see gymnasium.wrappers.FilterObservation"
            )
        self.fields = fields
        """Column, slot and plan of every field that is not part of an image."""
        self.groups = [*images, *_group_fields(fields)]
        self.starts = first_id + np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self._leaves = leaves
        bins_of_space = next((group.quantizer for group in self.groups if isinstance(group.quantizer, Bins)), None)
        self._outside = np.zeros(0 if bins_of_space is None else len(bins_of_space.counts), dtype=np.int64)
        self._seen = 0

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """
        Return the ids of field values.

        :param values: field values, (..., F)
        :param rng: random numbers that dither the bins; no dither when ``None``
        :return: ids, (..., S)
        :raises InputError: for a value that is NaN, or not one of its field's categories
        """
        if values.shape[-1] != self.num_fields:
            raise InputError(f"{self.names[0]} and on: {self.num_fields} fields expected, {values.shape[-1]} found")
        if values.dtype.kind == "f" and np.isnan(values).any():
            where = int(np.argmax(np.isnan(values).reshape(-1, self.num_fields).any(axis=0)))
            raise InputError(f"{self._field_name(where)} is NaN; every field needs a number")
        ids = np.empty((*values.shape[:-1], len(self.names)), dtype=np.int64)
        for group in self.groups:
            group_values = values[..., group.columns]
            ids[..., group.slots] = group.quantizer.encode(group_values, rng)
            if isinstance(group.quantizer, Bins):
                # Count the values that are clipped to an end bin, for the property ``clipped``.
                outside = group.quantizer.outside(group_values).reshape(-1, group_values.shape[-1])
                self._outside += np.count_nonzero(outside, axis=0)
                self._seen += len(outside)
        ids += self.starts[:-1]  # from local ids to ids
        return ids

    def decode(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Return the field values (..., F) of ids (..., S)."""
        local = ids - self.starts[:-1]
        values = np.empty((*local.shape[:-1], self.num_fields))
        for group in self.groups:
            values[..., group.columns] = group.quantizer.decode(local[..., group.slots])
        return values

    @property
    def clipped(self) -> dict[str, float]:
        """Share of the values so far that were outside the bins, by name of the real field."""
        names = [name for name, ordinal in zip(self.names, self.ordinal, strict=True) if ordinal]
        return {name: float(n) / max(self._seen, 1) for name, n in zip(names, self._outside, strict=True)}

    def _add(self, names: list[str], sizes: list[int], ordinal: list[bool]) -> None:
        self.names += names
        self.sizes += sizes
        self.ordinal += ordinal

    def _field_name(self, column: int) -> str:
        for leaf in self._leaves:
            if column < leaf.size:
                return leaf.fields[column].name
            column -= leaf.size
        raise IndexError(column)


def _group_fields(fields: list[tuple[int, int, FieldPlan]]) -> list[FieldGroup]:
    """Group fields, given by column, slot and plan, by how they are quantized."""
    groups = []
    for make in (_make_bins, _make_values, _make_categories):
        members = [(column, slot, plan) for column, slot, plan in fields if _maker_of(plan) is make]
        if members:
            columns, slots, plans = zip(*members, strict=True)
            groups.append(FieldGroup(as_index(columns), as_index(slots), make(plans)))
    return groups


def make_quantizer(plan: FieldPlan) -> Quantizer:
    """Make the quantizer of a single field."""
    return _maker_of(plan)([plan])


def _maker_of(plan: FieldPlan) -> Callable[[Sequence[FieldPlan]], Quantizer]:
    """Return the function that makes the quantizer of fields with plans like this one."""
    if plan.binned:
        return _make_bins
    return _make_values if plan.values is not None else _make_categories


def _make_bins(plans: Sequence[FieldPlan]) -> Quantizer:
    return Bins.of(*np.array([(plan.size, plan.low, plan.high, plan.scale, plan.origin) for plan in plans]).T)


def _make_values(plans: Sequence[FieldPlan]) -> Quantizer:
    return Values.of([plan.values or () for plan in plans])


def _make_categories(plans: Sequence[FieldPlan]) -> Quantizer:
    first, counts = (np.array(numbers, dtype=np.int64) for numbers in zip(*((p.low, p.size) for p in plans), strict=True))
    return Categories([plan.name for plan in plans], first, counts)


def as_index(indices: Sequence[int]) -> Index:
    """Return increasing indices as a slice where they have no gaps, so that indexing copies nothing, else as an array."""
    if indices and indices[-1] - indices[0] + 1 == len(indices):
        return slice(indices[0], indices[-1] + 1)
    return np.array(indices, dtype=np.int64)
