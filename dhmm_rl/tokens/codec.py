"""
Values of one space's fields to ids and back, all fields of a kind in one call.

Shapes: F fields; S slots; ``...`` any leading shape.
"""

from collections.abc import Mapping, Sequence
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
    """Some fields' values (..., f) to numbers of ids (..., s), counted from each slot's first, and back."""

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]: ...

    def decode(self, local: NDArray[Any]) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Categories:
    """
    Whole numbers from a first to a last; any other is an error.

    :param names: the fields', for that error
    :param first: (f,)
    :param counts: (f,)
    """

    names: Sequence[str]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """:raises InputError: naming a field whose value is no category"""
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
    A few values; any other goes to the nearest of them.

    :param values: in order, the last one repeated for a field with fewer than others, (f, n)
    """

    values: NDArray[np.float64]

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> "Values":
        """From one sequence a field."""
        most = max(map(len, values))
        return cls(np.array([[*some, *[some[-1]] * (most - len(some))] for some in values], dtype=np.float64))

    @cached_property
    def midpoints(self) -> NDArray[np.float64]:
        """Above which the next value is nearer, (f, n - 1); infinite where there is none."""
        middle = (self.values[:, 1:] + self.values[:, :-1]) / 2
        return np.where(self.values[:, 1:] > self.values[:, :-1], middle, np.inf)

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        local = np.zeros(values.shape, dtype=np.int64)
        for middle in self.midpoints.T:  # one step a value, not a field: few-valued fields have few
            local += values > middle
        return local

    def decode(self, local: NDArray[Any]) -> NDArray[Any]:
        values: NDArray[np.float64] = self.values[np.arange(len(self.values)), local]
        return values


class Unfitted(NamedTuple):
    """An image whose codebook is not known as yet."""

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

    :param columns: which of the space's fields, f of F
    :param slots: which of its slots, s of S
    :param quantizer: for them
    """

    columns: Index
    slots: Index
    quantizer: Quantizer


class Codec:
    """
    All fields of one space.

    :param leaves: the space's
    :param settings: by name; see :mod:`dhmm_rl.tokens.plan`
    :param bins: of a real field, where settings do not say
    :param codebooks: codes of images, by name
    :param first_id: of the first slot
    :raises InputError: for settings that do not fit, and for too many slots
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
        """Which slots belong to each leaf."""
        images: list[FieldGroup] = []
        fields: list[tuple[int, int, FieldPlan]] = []
        self.num_fields = 0
        for leaf in leaves:
            image, first = plan_image(leaf, settings), len(self.names)
            columns = slice(self.num_fields, self.num_fields + leaf.size)
            if image is not None:
                patches, size = image
                codes = codebooks.get(leaf.name)
                names = [f"{leaf.name}{name}" for name in patches.names]
                self._add(names, [size if codes is None else len(codes)] * len(names), [False] * len(names))
                quantizer: Quantizer = Unfitted(leaf.name) if codes is None else Codebook(patches, codes)
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
        """The column, the slot and the plan of every field that is no part of an image."""
        self.groups = [*images, *_group_fields(fields)]
        self.starts = first_id + np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self._leaves = leaves
        bins_part = next((part.quantizer for part in self.groups if isinstance(part.quantizer, Bins)), None)
        self._outside = np.zeros(0 if bins_part is None else len(bins_part.counts), dtype=np.int64)
        self._seen = 0

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """
        :param values: (..., F)
        :param rng: dithers bins when given
        :return: ids, (..., S)
        :raises InputError: naming the field whose value is NaN or no category
        """
        if values.shape[-1] != self.num_fields:
            raise InputError(f"{self.names[0]} and on: {self.num_fields} fields expected, {values.shape[-1]} found")
        if values.dtype.kind == "f" and np.isnan(values).any():
            where = int(np.argmax(np.isnan(values).reshape(-1, self.num_fields).any(axis=0)))
            raise InputError(f"{self._field_name(where)} is NaN; every field needs a number")
        ids = np.empty((*values.shape[:-1], len(self.names)), dtype=np.int64)
        for part in self.groups:
            some = values[..., part.columns]
            ids[..., part.slots] = part.quantizer.encode(some, rng)
            if isinstance(part.quantizer, Bins):
                outside = part.quantizer.outside(some).reshape(-1, some.shape[-1])
                self._outside += np.count_nonzero(outside, axis=0)
                self._seen += len(outside)
        ids += self.starts[:-1]
        return ids

    def decode(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Field values (..., F) of ids (..., S)."""
        local = ids - self.starts[:-1]
        values = np.empty((*local.shape[:-1], self.num_fields))
        for part in self.groups:
            values[..., part.columns] = part.quantizer.decode(local[..., part.slots])
        return values

    @property
    def clipped(self) -> dict[str, float]:
        """By real field, the share of values so far that lay beyond the bins."""
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
    """Columns, slots and plans of single fields, together by how they are quantized."""
    parts = []
    for kind in (_bins, _values, _categories):
        some = [(column, slot, plan) for column, slot, plan in fields if kind is _kind(plan)]
        if some:
            columns, places, plans = zip(*some, strict=True)
            parts.append(FieldGroup(as_index(columns), as_index(places), kind(plans)))
    return parts


def make_quantizer(plan: FieldPlan) -> Quantizer:
    """The quantizer of a single field."""
    made: Quantizer = _kind(plan)([plan])
    return made


def _kind(plan: FieldPlan) -> Any:
    return _bins if plan.binned else _values if plan.values is not None else _categories


def _bins(plans: Sequence[FieldPlan]) -> Quantizer:
    return Bins.of(*np.array([(plan.size, plan.low, plan.high, plan.scale, plan.origin) for plan in plans]).T)


def _values(plans: Sequence[FieldPlan]) -> Quantizer:
    return Values.of([plan.values or () for plan in plans])


def _categories(plans: Sequence[FieldPlan]) -> Quantizer:
    first, counts = (np.array(numbers, dtype=np.int64) for numbers in zip(*((p.low, p.size) for p in plans), strict=True))
    return Categories([plan.name for plan in plans], first, counts)


def as_index(indices: Sequence[int]) -> Index:
    """Return increasing indices as a slice where they have no gaps, so that indexing copies nothing, else as an array."""
    if indices and indices[-1] - indices[0] + 1 == len(indices):
        return slice(indices[0], indices[-1] + 1)
    return np.array(indices, dtype=np.int64)
