"""
The tokenizer of one environment: observations and actions to ids and back, and the grammar of a step.

Shapes: C slots in a step, of which the first A are the action's; ``...`` any leading shape.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.fields import Field, fields_of, flatten, space_from_dict, space_to_dict, unflatten

NOTHING = -1
"""Never embedded, never attended to, never a label."""
RESET = 0
"""Fills the action slots of an episode's first step."""
DONE = 1
"""Stands in the first slot of the step after a terminated episode."""

UNBOUNDED_SPAN = 10.0
"""A field without bounds is binned out to so many times its scale."""


@dataclass(frozen=True)
class Slot:
    """
    A field's place inside a step, and the ids that may stand there.

    The first slot's range begins with ``DONE``: it is what may follow a step besides an action.

    :param name: the field's name
    :param start: first id
    :param stop: one past the last id
    :param ordinal: how many of the last ids are the bins of one real field, in order; 0 for categories
    """

    name: str
    start: int
    stop: int
    ordinal: int = 0


class Tokenizer:
    """
    Turns observations and actions into token ids, each field owning its own range of ids, and back.

    Ids: ``RESET`` 0, ``DONE`` 1, the action's fields, the observation's fields. CartPole with 10 bins has 44.

    :param observation_space: Box or MultiDiscrete of one dimension, Discrete, or a Tuple of these
    :param action_space: the same, but no Tuple
    :param bins: how many bins a real field gets
    :param overrides: what to do differently, by field name: ``bins``, ``low``, ``high``, and for a field without bounds
        ``scale`` (its typical size), e.g. ``{"observation[0]": {"low": -2.4, "high": 2.4}}``
    :raises InputError: for a space that cannot be tokenised, and for an override that names no field
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        bins: int = 10,
        overrides: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.bins = bins
        self.overrides = {name: dict(override) for name, override in (overrides or {}).items()}
        self.action_fields = fields_of(action_space, "action")
        self.observation_fields = fields_of(observation_space, "observation")
        self.fields = self.action_fields + self.observation_fields
        self._check_settings()

        sizes = [self._size(field) for field in self.fields]
        starts = DONE + 1 + np.concatenate([[0], np.cumsum(sizes)])
        self.slots = tuple(
            Slot(field.name, DONE if j == 0 else int(starts[j]), int(starts[j + 1]), sizes[j] if field.kind == "real" else 0)
            for j, field in enumerate(self.fields)
        )
        self.vocab_size = int(starts[-1])
        self.action_slots = len(self.action_fields)
        self._action_codec = _Codec(self.action_fields, starts[: self.action_slots], self._bins_of(self.action_fields))
        self._observation_codec = _Codec(
            self.observation_fields, starts[self.action_slots : -1], self._bins_of(self.observation_fields)
        )

    def __repr__(self) -> str:
        return f"Tokenizer({len(self.slots)} slots, {self.vocab_size} ids)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict()))

    # Values and ids

    def encode_observation(self, observation: Any, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """
        The ids of observations.

        :param observation: values of the observation space, with any leading shape
        :param rng: dithers the bins of real fields when given (see :meth:`Bins.encode`)
        :return: ids, (..., C - A)
        :raises InputError: where a value is NaN or, in a categorical field, no category
        """
        return self._observation_codec.encode(flatten(self.observation_space, observation), rng)

    def encode_action(self, action: ArrayLike) -> NDArray[np.int64]:
        """The ids of actions, (..., A). Like :meth:`encode_observation`."""
        return self._action_codec.encode(flatten(self.action_space, action))

    def decode_observation(self, ids: ArrayLike) -> Any:
        """Observations from ids (..., C - A): categories exactly, real fields at the centres of their bins."""
        return unflatten(self.observation_space, self._observation_codec.decode(np.asarray(ids)))

    def decode_action(self, ids: ArrayLike) -> NDArray[Any]:
        """Actions from ids (..., A), like :meth:`decode_observation`."""
        actions: NDArray[Any] = unflatten(self.action_space, self._action_codec.decode(np.asarray(ids)))
        return actions

    # The grammar of a step

    def first_step(self, observation: Any, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """The step that opens an episode, (..., C): ``RESET`` in the action slots, then the observation."""
        ids = self.encode_observation(observation, rng)
        return np.concatenate([np.full((*ids.shape[:-1], self.action_slots), RESET), ids], axis=-1)

    def next_step(self, action: ArrayLike, observation: Any, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """The step (..., C) of an action and the observation that it led to."""
        return np.concatenate([self.encode_action(action), self.encode_observation(observation, rng)], axis=-1)

    def done_step(self) -> NDArray[np.int64]:
        """The step (C,) that follows a terminated episode: ``DONE`` in the first slot and nothing else."""
        return np.array([DONE] + [NOTHING] * (len(self.slots) - 1))

    @property
    def clipped(self) -> dict[str, float]:
        """The share of all values seen so far, by real field, that lay outside the bins and went to an end."""
        return self._action_codec.clipped | self._observation_codec.clipped

    # Fitting, checking, keeping

    def fit(self, observations: ArrayLike) -> "Tokenizer":
        """
        A tokenizer like this one whose fields without bounds have the scale of data.

        :param observations: values of the observation space, (N, ...)
        :return: a new tokenizer; a field whose scale is given in ``overrides`` keeps it
        :raises InputError: where a value is not finite
        """
        values = flatten(self.observation_space, observations).reshape(-1, len(self.observation_fields))
        fitted = dict(self.overrides)
        for field, column in zip(self.observation_fields, values.T, strict=True):
            if field.kind == "real" and self._unbounded(field) and "scale" not in fitted.get(field.name, {}):
                if not np.isfinite(column).all():
                    raise InputError(f"{field.name} is not finite in the data that the tokenizer is fitted on")
                scale = float(np.sqrt(np.mean(np.square(column, dtype=np.float64)))) or 1.0
                fitted[field.name] = {**fitted.get(field.name, {}), "scale": scale}
        return Tokenizer(self.observation_space, self.action_space, self.bins, fitted)

    def check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """
        Refuse an environment whose spaces are not this tokenizer's.

        :raises InputError: naming the first field that differs
        """
        for name, known, other in (
            ("action", self.action_fields, fields_of(action_space, "action")),
            ("observation", self.observation_fields, fields_of(observation_space, "observation")),
        ):
            if len(known) != len(other):
                raise InputError(f"the tokenizer knows {len(known)} {name} fields, the environment has {len(other)}")
            for mine, theirs in zip(known, other, strict=True):
                if mine != theirs:
                    raise InputError(
                        f"the tokenizer knows {mine.name} as {mine.kind} in [{mine.low:g}, {mine.high:g}], "
                        f"the environment has it as {theirs.kind} in [{theirs.low:g}, {theirs.high:g}]"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Everything that makes this tokenizer, for JSON."""
        return {
            "observation_space": space_to_dict(self.observation_space),
            "action_space": space_to_dict(self.action_space),
            "bins": self.bins,
            "overrides": self.overrides,
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> "Tokenizer":
        """Invert :meth:`to_dict`."""
        return cls(
            space_from_dict(description["observation_space"]),
            space_from_dict(description["action_space"]),
            description["bins"],
            description["overrides"],
        )

    def save(self, path: str | Path) -> None:
        """Write this tokenizer as JSON."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """
        Read a tokenizer that :meth:`save` wrote.

        :raises InputError: where there is none
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a tokenizer that Tokenizer.save wrote ({type(error).__name__})") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(Tokenizer.from_dict(state).__dict__)

    def _check_settings(self) -> None:
        names = [field.name for field in self.fields]
        for name, override in self.overrides.items():
            if name not in names:
                raise InputError(f"token settings name a field {name!r}; the fields are {', '.join(names)}")
            unknown = set(override) - {"bins", "low", "high", "scale"}
            if unknown:
                raise InputError(f"token settings of {name} hold {unknown.pop()!r}; known are bins, low, high and scale")
            if override.get("scale", 1) <= 0:
                raise InputError(f"the scale of {name} is {override['scale']}; it must be positive")
        for field in self.fields:
            if field.kind == "real" and self._size(field) < 2:
                raise InputError(f"{field.name} has {self._size(field)} bins; it needs at least 2")

    def _size(self, field: Field) -> int:
        if field.kind == "real":
            return int(self.overrides.get(field.name, {}).get("bins", self.bins))
        return int(field.high - field.low) + 1

    def _unbounded(self, field: Field) -> bool:
        override = self.overrides.get(field.name, {})
        return not (field.bounded or ("low" in override and "high" in override))

    def _bins_of(self, fields: list[Field]) -> Bins:
        columns = []
        for field in fields:
            override = self.overrides.get(field.name, {})
            scale = override.get("scale", 1.0) if self._unbounded(field) or "scale" in override else np.inf
            span = UNBOUNDED_SPAN * scale if self._unbounded(field) else 0.0
            low = override.get("low", -span if span else field.low)
            high = override.get("high", span if span else field.high)
            if field.kind == "real" and not low < high:
                raise InputError(f"{field.name} is binned from {low:g} to {high:g}; low must be less than high")
            columns.append((self._size(field), low, high, scale))
        return Bins.of(*np.array(columns).T)


class _Codec:
    """
    Values of one space's fields to ids and back.

    :param starts: the first id of every field, (F,)
    """

    def __init__(self, fields: list[Field], starts: NDArray[np.int64], bins: Bins) -> None:
        self.fields = fields
        self.starts = starts.astype(np.int64)
        self.real = np.array([field.kind == "real" for field in fields])
        self.categorical = ~self.real
        self.first_category = np.array([field.low for field in fields])[self.categorical]
        self.categories = bins.counts[self.categorical]
        self.bins = Bins(*(column[self.real] for column in bins))
        self.outside = np.zeros(int(self.real.sum()), dtype=np.int64)
        self.seen = 0

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        if values.shape[-1] != len(self.fields):
            raise InputError(f"{self.fields[0].name} and on: {len(self.fields)} fields expected, {values.shape[-1]} found")
        if np.isnan(values).any():
            where = int(np.argmax(np.isnan(values).reshape(-1, len(self.fields)).any(axis=0)))
            raise InputError(f"{self.fields[where].name} is NaN; every field needs a number")
        ids = np.empty(values.shape, dtype=np.int64)
        if self.real.any():
            real = values[..., self.real]
            ids[..., self.real] = self.bins.encode(real, rng)
            beyond = (real < self.bins.low) | (real > self.bins.high)
            self.outside += beyond.reshape(-1, beyond.shape[-1]).sum(axis=0)
            self.seen += beyond.size // beyond.shape[-1]
        if self.categorical.any():
            categories = values[..., self.categorical] - self.first_category
            wrong = (categories < 0) | (categories >= self.categories)
            if wrong.any():
                where = int(np.argmax(wrong.reshape(-1, wrong.shape[-1]).any(axis=0)))
                field = [field for field in self.fields if field.kind == "categorical"][where]
                value = values[..., self.categorical][wrong].flat[0]
                raise InputError(f"{field.name} is {value:g}; its categories go from {field.low:g} to {field.high:g}")
            ids[..., self.categorical] = categories
        return ids + self.starts

    def decode(self, ids: NDArray[Any]) -> NDArray[Any]:
        local = ids - self.starts
        values = np.empty(local.shape, dtype=np.float64)
        values[..., self.real] = self.bins.decode(local[..., self.real])
        values[..., self.categorical] = local[..., self.categorical] + self.first_category
        return values

    @property
    def clipped(self) -> dict[str, float]:
        names = [field.name for field in self.fields if field.kind == "real"]
        return {name: float(n) / max(self.seen, 1) for name, n in zip(names, self.outside, strict=True)}
