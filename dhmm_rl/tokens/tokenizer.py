"""
The tokenizer of one environment: observations and actions to ids and back, and the grammar of a step.

Shapes: C slots of a step, of which the first A are the action's; ``...`` any leading shape.
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
from dhmm_rl.files import read_json, write_json
from dhmm_rl.plain import plain, plain_scalars
from dhmm_rl.tokens import fitting
from dhmm_rl.tokens.codec import Codec
from dhmm_rl.tokens.composite_spaces import bounded
from dhmm_rl.tokens.fields import fields_of, flatten, leaves_of, space_from_dict, space_to_dict, unflatten
from dhmm_rl.tokens.images import codes_from_text, codes_to_text
from dhmm_rl.tokens.plan import check_settings, drop_unbounded
from dhmm_rl.tokens.reports import FieldReport, report_fields

PAD_ID = -1
"""Padding: it is never embedded, attended to, or a label."""
RESET = 0
"""The id in the action slots of an episode's first step."""
DONE = 1
"""The id in the first slot of the step after a terminated episode."""


@dataclass(frozen=True)
class Slot:
    """
    The place of a field inside a step, and its range of ids.

    The first slot's range begins with ``DONE``, which may follow a step instead of an action.

    :param name: name of the field
    :param start: first id
    :param stop: last id plus 1
    :param ordinal: number of ids, counted from the last, that are the bins of one real field in order; 0 for categories
    """

    name: str
    start: int
    stop: int
    ordinal: int = 0


DEFAULT_BINS = 10
"""Number of bins of a real field, unless it is given or the data need more."""


class Tokenizer:
    """
    Turns observations and actions into token ids and back. Each field owns its own range of ids.

    The ids are ``RESET`` 0, ``DONE`` 1, then those of the action's fields, then those of the observation's fields. CartPole
    with 10 bins has 44 ids.

    :param observation_space: a space of a supported kind; see :mod:`dhmm_rl.tokens.fields`
    :param action_space: a space of a supported kind; agents need one that SB3's PPO supports
    :param bins: number of bins of a real field. By default 10, and as many as :meth:`fit` finds that the data need
    :param overrides: settings by name of a field, of an array of fields, or of one channel of it (``observation[0]``,
        ``observation.image``, ``observation.image[:,:,0]``). For real fields: ``bins``, ``low``, ``high``; ``scale``, the
        typical distance of values from ``origin``, where bins are finest; or ``values``, the only values to tell apart. For
        images: ``patch``, the side of a patch (0 makes each cell a category), and ``codes``, the size of the codebook.
        Example: ``{"observation[0]": {"low": -2.4, "high": 2.4}}``
    :param codebooks: codes (K, d) of each image, by name; see :meth:`fit`
    :raises InputError: for a space that cannot be tokenized, and for an override that names no field
    """

    report: list[FieldReport] | None = None
    """How well the data can be recovered from their tokens; only on a tokenizer that :meth:`fit` returned."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        bins: int | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        codebooks: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> None:
        self.observation_space = bounded(observation_space)
        self.action_space = bounded(action_space)
        self.bins, self.overrides = plain(DEFAULT_BINS if bins is None else bins), plain(overrides or {})
        self._finer_bins = bins is None
        if isinstance(self.bins, float) and self.bins.is_integer():
            self.bins = int(self.bins)
        if not isinstance(self.bins, int) or isinstance(self.bins, bool) or self.bins < 2:
            raise InputError(f"bins is {bins!r}; it must be a whole number of at least 2")
        if not isinstance(self.overrides, dict):
            raise InputError(f"token settings are {overrides!r}; they must be a table of settings by field")
        self.codebooks = dict(codebooks or {})
        self.action_leaves = leaves_of(self.action_space, "action")
        self.observation_leaves = leaves_of(self.observation_space, "observation")
        self.overrides = drop_unbounded(self.overrides)
        check_settings([*self.action_leaves, *self.observation_leaves], self.overrides)

        settings = self.overrides, self.bins, self.codebooks
        self.action_codec = Codec(self.action_leaves, *settings, first_id=DONE + 1)
        self.observation_codec = Codec(self.observation_leaves, *settings, first_id=int(self.action_codec.starts[-1]))
        self.slots = (*_slots(self.action_codec, first=DONE), *_slots(self.observation_codec))
        self.vocab_size = int(self.observation_codec.starts[-1])
        self.action_slots = len(self.action_codec.names)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self.slots)} slots, {self.vocab_size} ids)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict()))

    # Values and ids

    def encode_observation(self, observation: Any, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """
        Return the ids of observations.

        :param observation: values of the observation space, with any leading shape
        :param rng: random numbers that dither the bins of real fields, see :meth:`Bins.encode`; no dither when ``None``
        :return: ids, (..., C - A)
        :raises InputError: for a value that is NaN, or not one of its field's categories
        """
        return self.observation_codec.encode(flatten(self.observation_space, observation), rng)

    def encode_action(self, action: Any) -> NDArray[np.int64]:
        """Return the ids of actions, (..., A); like :meth:`encode_observation`."""
        return self.action_codec.encode(flatten(self.action_space, action))

    def decode_observation(self, ids: ArrayLike) -> Any:
        """Return the observations of ids (..., C - A): categories exactly, real fields at the centers of their bins."""
        return unflatten(self.observation_space, self.observation_codec.decode(np.asarray(ids)))

    def decode_action(self, ids: ArrayLike) -> Any:
        """Return the actions of ids (..., A); like :meth:`decode_observation`."""
        return unflatten(self.action_space, self.action_codec.decode(np.asarray(ids)))

    # The grammar of a step

    def first_step(self, observation: Any, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Return the first step of an episode, (..., C): ``RESET`` in the action slots, then the observation."""
        ids = self.encode_observation(observation, rng)
        return np.concatenate([np.full((*ids.shape[:-1], self.action_slots), RESET), ids], axis=-1)

    def next_step(self, action: Any, observation: Any, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Return the step (..., C) of an action and the observation that it led to."""
        return np.concatenate([self.encode_action(action), self.encode_observation(observation, rng)], axis=-1)

    def done_step(self) -> NDArray[np.int64]:
        """Return the step (C,) that follows a terminated episode: ``DONE`` in the first slot, then padding."""
        return np.array([DONE] + [PAD_ID] * (len(self.slots) - 1))

    @property
    def clipped(self) -> dict[str, float]:
        """Share of the values so far that were outside the bins and went to an end bin, by name of the real field."""
        return self.action_codec.clipped | self.observation_codec.clipped

    # Fitting, comparing, saving

    @plain_scalars
    def fit(self, data: Any, seed: int = 0) -> "Tokenizer":
        """
        Return a tokenizer like this one that suits data.

        A real field keeps its declared bounds if its data can be told apart with them: they use more than two bins, and the
        root mean square error of decoding is at most half their standard deviation. Otherwise, and for a field without bounds,
        the bins are placed where the data are: finest at their median, and wider with the distance from it (``asinh``). They
        reach to the most distant value, between 10 and 100 times the spread of the data from the median, which leaves room for
        values that the data do not show. If the bins are then too coarse to tell the data apart, they reach 10, 5 or 2.5 times
        the spread. They never reach past declared bounds that hold the data. The spread is the root mean square distance from
        the median, after limiting the data to their 0.5 % and 99.5 % quantiles. A field with one bound keeps its bins finest
        there if its data can be told apart that way.

        A field whose values mostly change by less than a bin from one step to the next gets more bins, up to 128, so that the
        change can be seen: the median of the changes is then a bin. For this the rows of the data must be successive steps.
        Fields with settings of their own, and all fields if ``bins`` was given, keep their number of bins.

        A field with at most as many values as bins gets exactly these values as ids. A field that never changes keeps its bins.
        Arrays of integers, such as MiniGrid's, become cells of the categories that the data show; images get codebooks.
        Settings in ``overrides`` are kept. A warning names fields that still cannot be told apart, and says what to set.

        :param data: :class:`Rollouts`, or values of the observation space, (N, ...). For an environment,
            :func:`dhmm_rl.data.random_observations` gives such values: ``tokenizer.fit(random_observations(env))``
        :param seed: seed of the codebooks
        :return: a new tokenizer, with a :attr:`report`
        :raises InputError: for a value that is NaN, and for empty data
        """
        observations, actions = fitting.read_rows(self, data)
        overrides, codebooks = fitting.fit_settings(self, observations, actions, seed)
        # The fitted settings go through the constructor, as settings of a user would.
        fitted = Tokenizer(self.observation_space, self.action_space, self.bins, overrides, codebooks)
        if self._finer_bins:
            for name, bins in fitting.finer_bins(self, fitted, observations).items():
                overrides[name] = {**overrides.get(name, {}), "bins": bins}
            fitted = Tokenizer(self.observation_space, self.action_space, self.bins, overrides, codebooks)
        fitted.report = report_fields(fitted, observations)
        fitting.warn_poorly_resolved(fitted, observations, fitted.report)
        return fitted

    @property
    def unfitted(self) -> list[str]:
        """Names of what should be fitted: fields without bounds and scale, images without a codebook, grids of integers."""
        return fitting.unfitted_names(self)

    def encodes_like(self, other: "Tokenizer") -> bool:
        """Whether another tokenizer gives the same ids, even if its settings are written differently."""
        own_fields, other_fields = ((one.action_codec.fields, one.observation_codec.fields) for one in (self, other))
        return own_fields == other_fields and self.codebooks.keys() == other.codebooks.keys() and self.slots == other.slots

    def check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """
        Check that spaces have the fields that this tokenizer knows.

        :param observation_space: an environment's observation space
        :param action_space: its action space
        :raises InputError: for spaces that differ, naming the first field that does
        """
        for name, known_leaves, space in (
            ("action", self.action_leaves, bounded(action_space)),
            ("observation", self.observation_leaves, bounded(observation_space)),
        ):
            if known_leaves == leaves_of(space, name):
                continue
            known, found = [field for leaf in known_leaves for field in leaf.fields], fields_of(space, name)
            if len(known) != len(found):
                raise InputError(f"the tokenizer knows {len(known)} {name} fields, the environment has {len(found)}")
            for mine, other in zip(known, found, strict=True):
                if mine.name != other.name:
                    raise InputError(f"the tokenizer knows a field {mine.name} where the environment has {other.name}")
                if mine != other:
                    raise InputError(
                        f"the tokenizer knows {mine.name} as {mine.kind} in [{mine.low:g}, {mine.high:g}], "
                        f"the environment has it as {other.kind} in [{other.low:g}, {other.high:g}]"
                    )
            raise InputError(f"the tokenizer knows another {name} space than {space}")

    def difference(self, other: "Tokenizer") -> str:
        """Say in words what differs first in another tokenizer; an empty text for an equal one."""
        try:
            self.check_spaces(other.observation_space, other.action_space)
        except InputError as error:
            return str(error)
        for codec, other_codec in ((self.action_codec, other.action_codec), (self.observation_codec, other.observation_codec)):
            for (_, _, plan), (_, _, other_plan) in zip(codec.fields, other_codec.fields, strict=False):
                if plan != other_plan:
                    there = other_plan if other_plan.name == plan.name else "none"
                    return f"{plan.name} has {plan} here and {there} there"
        for name in self.codebooks.keys() | other.codebooks.keys():
            if not np.array_equal(self.codebooks.get(name, ()), other.codebooks.get(name, ())):
                return f"the codebooks of {name} differ"
        return "" if self == other else "their settings differ"

    def to_dict(self) -> dict[str, Any]:
        """Describe the tokenizer for JSON."""
        return {
            "observation_space": space_to_dict(self.observation_space),
            "action_space": space_to_dict(self.action_space),
            "bins": self.bins,
            "overrides": self.overrides,
            "codebooks": {
                name: {"bytes": codes.shape[1], "codes": codes_to_text(codes)} for name, codes in self.codebooks.items()
            },
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> "Tokenizer":
        """Invert :meth:`to_dict`."""
        return cls(
            space_from_dict(description["observation_space"]),
            space_from_dict(description["action_space"]),
            description["bins"],
            description["overrides"],
            {name: codes_from_text(book["codes"], book["bytes"]) for name, book in description.get("codebooks", {}).items()},
        )

    def save(self, path: str | Path) -> None:
        """Write this tokenizer as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """
        Read a tokenizer that :meth:`save` wrote.

        :param path: file to read
        :raises InputError: for a file that is missing, or was changed after it was written
        """
        try:
            return cls.from_dict(read_json(path))
        except InputError as error:
            raise InputError(f"{path} is not a tokenizer that Tokenizer.save wrote: {error}") from error
        except Exception as error:  # a file can hold anything
            raise InputError(f"{path} is not a tokenizer that Tokenizer.save wrote ({type(error).__name__})") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(Tokenizer.from_dict(state).__dict__)


def _slots(codec: Codec, first: int | None = None) -> list[Slot]:
    """
    Return the slots of a codec.

    :param codec: codec of the action or the observation space
    :param first: id with which the range of the first slot begins; its own first id when ``None``
    """
    starts, stops = codec.starts[:-1].tolist(), codec.starts[1:].tolist()
    if first is not None:
        starts[0] = first
    ordinal = [size if binned else 0 for size, binned in zip(codec.sizes, codec.ordinal, strict=True)]
    return [Slot(*parts) for parts in zip(codec.names, starts, stops, ordinal, strict=True)]
