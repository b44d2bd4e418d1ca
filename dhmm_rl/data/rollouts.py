"""
Recorded episodes: in memory, or memory-mapped from a folder.

Shapes: R rows of all episodes together, E episodes, F fields of a space.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json, write_json
from dhmm_rl.tokens import FieldSpace
from dhmm_rl.tokens.fields import cast, fields_of, flatten, leaves_of, space_from_dict, space_to_dict, unflatten

Notice = Callable[[str], None]

_ARRAYS = ("observations", "actions", "rewards", "starts", "terminated", "imitate")
ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_REWARD = spaces.Box(-np.inf, np.inf, ())
_ROWS_AT_ONCE = 10_000


def pack(space: spaces.Space[Any], values: Any) -> NDArray[Any]:
    """
    Values of a space as rollouts keep them.

    :param values: with any leading shape
    :return: of a space whose values are arrays, these; of a composite one (Dict, Tuple, …) its fields' values, (..., F). Where
        fields have several types, and each in its own takes at most half the memory, they make a structured array (...), with
        one entry (f,) for each type.
    :raises InputError: where an integer field is NaN or infinite
    """
    if _is_plain(space):
        return np.asarray(values)
    flat, columns = flatten(space, values), _columns_by_type(space)
    for dtype, chosen in columns.items():
        if dtype.kind in "iu" and flat.dtype.kind == "f" and not np.isfinite(flat[..., chosen]).all():
            raise InputError(f"a field of {space} is NaN or infinite; it must be a whole number")
    row_type = _row_type(columns)
    if not row_type.names:
        return cast(flat, row_type)
    kept = np.empty(flat.shape[:-1], row_type)
    for dtype, chosen in columns.items():
        kept[dtype.name] = cast(flat[..., chosen], dtype)
    return kept


def unpack(space: spaces.Space[Any], kept: NDArray[Any]) -> Any:
    """Invert :func:`pack`; one array of all fields' values (..., F) will do, too."""
    if _is_plain(space):
        return kept
    if kept.dtype.names:
        columns = _columns_by_type(space)
        flat = np.empty((*kept.shape, *packed_shape(space)), np.result_type(*columns))
        for dtype, chosen in columns.items():
            flat[..., chosen] = kept[dtype.name]
        kept = flat
    return kept if isinstance(space, FieldSpace) else unflatten(space, kept)


def packed_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """The shape of one value: its own, or (F,) of a composite space."""
    return space.shape or () if isinstance(space, ARRAY_SPACES) else (sum(leaf.size for leaf in leaves_of(space, "value")),)


def is_packed(space: spaces.Space[Any], kept: NDArray[Any]) -> bool:
    """Whether an array has the type and shape of rows that :func:`pack` makes of a space, or of its fields' values, (R, F)."""
    if kept.dtype.names:
        return not _is_plain(space) and kept.ndim == 1 and kept.dtype == _row_type(_columns_by_type(space))
    return kept.shape[1:] == packed_shape(space) and kept.dtype.kind in "biuf"


def _joined(space: spaces.Space[Any], arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Rows one after the other, of one type: older files hold all fields of a composite space as floats."""
    if any(array.dtype.names for array in arrays) and not all(array.dtype.names for array in arrays):
        arrays = [pack(space, unpack(space, array)) for array in arrays]
    return np.concatenate(arrays)


def _crc(array: NDArray[Any], value: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data, value)


def _is_plain(space: spaces.Space[Any]) -> bool:
    return isinstance(space, ARRAY_SPACES) and not isinstance(space, FieldSpace)


def _columns_by_type(space: spaces.Space[Any]) -> dict[np.dtype[Any], NDArray[np.int64]]:
    """The numbers of the fields of each type, in the order in which types first occur."""
    leaves = leaves_of(space, "value")
    types = list(dict.fromkeys(leaf.dtype for leaf in leaves))
    number = np.repeat([types.index(leaf.dtype) for leaf in leaves], [leaf.size for leaf in leaves])
    return {dtype: np.flatnonzero(number == i) for i, dtype in enumerate(types)}


def _row_type(columns: dict[np.dtype[Any], NDArray[np.int64]]) -> np.dtype[Any]:
    """One type for all fields, or an entry for each type where that takes at most half the memory."""
    common, width = np.result_type(*columns), sum(map(len, columns.values()))
    single = np.dtype([(dtype.name, dtype, (len(chosen),)) for dtype, chosen in columns.items()])
    return single if 2 * single.itemsize <= common.itemsize * width else common


class Episode(NamedTuple):
    """
    An episode of T environment steps.

    :param observations: as :func:`pack` gives them, (T + 1, ...)
    :param actions: the same, (T, ...)
    :param rewards: (T,)
    :param terminated: whether it reached a terminal state (else it was cut off)
    :param imitate: whether its actions are worth imitating
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.floating[Any]]
    terminated: bool
    imitate: bool


def _checked(number: int, episode: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Episode:
    """
    An episode, its parts as arrays.

    :param number: what errors call it
    :raises InputError: when it is no episode of these spaces
    """
    if not isinstance(episode, Episode):
        raise InputError(f"episode {number} is a {type(episode).__name__}; it must be an Episode of dhmm_rl.data.rollouts")
    found = []
    for name, space, values in (
        ("observations", observation_space, episode.observations),
        ("actions", action_space, episode.actions),
        ("rewards", _REWARD, episode.rewards),
    ):
        try:
            array = np.asarray(values)
        except ValueError as error:  # rows of several lengths
            raise InputError(f"{name} of episode {number} are no array: {str(error).splitlines()[0]}") from error
        if array.ndim == 0 or not is_packed(space, array):
            raise InputError(
                f"{name} of episode {number} are {array.dtype} of shape {array.shape}; they must be as "
                f"dhmm_rl.data.rollouts.pack makes them of {' '.join(str(space).split()):.200}, one a row"
            )
        found.append(array)
    observations, actions, rewards = found
    if not len(observations) - 1 == len(actions) == len(rewards) > 0:
        raise InputError(
            f"episode {number} has {len(observations)} observations, {len(actions)} actions and {len(rewards)} rewards; an "
            "episode of T steps, 1 or more, has T + 1 observations, T actions and T rewards"
        )
    return Episode(observations, actions, rewards, episode.terminated, episode.imitate)


class Fault(NamedTuple):
    """Why an episode cannot be used, and in which row of its rollouts."""

    row: int
    reason: str


@dataclass(frozen=True)
class Rollouts:
    """
    Episodes one after the other in contiguous arrays, a row for every step of the stream.

    An episode of T environment steps has T + 1 rows: row t holds observation t, the action that led to it and the reward that
    came with it. In an episode's first row action and reward are fillers that nothing reads.

    :param observations: (R, ...); of a composite space (Dict, Tuple, …) the values of its fields as :func:`pack` gives them,
        (R, F), or (R,) where fields have several types
    :param actions: in the same way
    :param rewards: (R,); may be NaN where they are not known, which leaves the episode without a return
    :param starts: the first row of every episode, and R at the end, (E + 1,)
    :param terminated: whether the episode reached a terminal state (else it was cut off), (E,)
    :param imitate: whether the episode's actions are worth imitating, (E,)
    :param observation_space: of the environment
    :param action_space: of the environment
    :param env_id: the environment's name
    :param env_steps: environment steps that were taken to collect this, those of discarded episodes included
    :raises InputError: when the parts do not fit together
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    starts: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    imitate: NDArray[np.bool_]
    observation_space: spaces.Space[Any] = field(repr=False)
    action_space: spaces.Space[Any] = field(repr=False)
    env_id: str
    env_steps: int

    def __post_init__(self) -> None:
        self.check_shape()

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        env_id: str,
        env_steps: int,
    ) -> "Rollouts":
        """
        Put episodes one after the other.

        :raises InputError: when there are none, or for the first whose parts do not fit together
        """
        if not episodes:
            raise InputError(f"there are no episodes in these rollouts of {env_id}")
        episodes = [_checked(number, episode, observation_space, action_space) for number, episode in enumerate(episodes)]
        return cls(
            observations=_joined(observation_space, [episode.observations for episode in episodes]),
            actions=_joined(action_space, [part for episode in episodes for part in (episode.actions[:1], episode.actions)]),
            rewards=np.concatenate([part for episode in episodes for part in ([0], episode.rewards)]).astype(np.float32),
            starts=np.concatenate([[0], np.cumsum([len(episode.observations) for episode in episodes])]),
            terminated=np.array([bool(episode.terminated) for episode in episodes]),
            imitate=np.array([bool(episode.imitate) for episode in episodes]),
            observation_space=observation_space,
            action_space=action_space,
            env_id=env_id,
            env_steps=env_steps,
        )

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self.terminated)

    def __getitem__(self, number: int) -> Episode:
        """The episode with this number."""
        first, end = self.starts[number], self.starts[number + 1]
        return Episode(
            self.observations[first:end],
            self.actions[first + 1 : end],
            self.rewards[first + 1 : end],
            bool(self.terminated[number]),
            bool(self.imitate[number]),
        )

    def __iter__(self) -> Iterator[Episode]:
        """The episodes in order."""
        return map(self.__getitem__, range(len(self)))

    def select(self, numbers: Sequence[int] | NDArray[np.integer[Any]]) -> "Rollouts":
        """The episodes with these numbers alone, in memory."""
        chosen = [self[int(number)] for number in numbers]
        return self.from_episodes(chosen, self.observation_space, self.action_space, self.env_id, self.env_steps)

    def with_imitate(self, imitate: bool | NDArray[np.bool_]) -> "Rollouts":
        """The same, with this said of the actions of all episodes or of each (E,)."""
        return replace(self, imitate=np.broadcast_to(imitate, len(self)))

    def with_observation_space(self, space: spaces.Space[Any]) -> "Rollouts":
        """
        The same with observations as values of another space, if that holds the same parts: in another order, as fields
        (:class:`FieldSpace`), or one of some strings where this holds any text. Otherwise these rollouts as they are.

        :raises InputError: for a text that is none of the other space's strings
        """
        mine, other = (leaves_of(one, "observation") for one in (self.observation_space, space))
        if mine == other and isinstance(self.observation_space, ARRAY_SPACES) == isinstance(space, ARRAY_SPACES):
            return self
        named = {leaf.name: leaf for leaf in other}
        if len(mine) != len(other) or not all(
            leaf == named.get(leaf.name) or (leaf.labels and leaf.name in named and named[leaf.name].labels) for leaf in mine
        ):
            return self
        values = self.observations_at(np.arange(len(self.observations)))
        if isinstance(self.observation_space, FieldSpace):
            values = unflatten(self.observation_space.space, values)
        if isinstance(space, FieldSpace):
            values = flatten(space.space, values)
        return replace(self, observations=pack(space, values), observation_space=space)

    def observations_at(self, rows: NDArray[np.integer[Any]]) -> Any:
        """Observations as values of their space; ``rows`` may have any shape."""
        return unpack(self.observation_space, self.observations[rows])

    def actions_at(self, rows: NDArray[np.integer[Any]]) -> Any:
        """Actions as values of their space; ``rows`` may have any shape."""
        return unpack(self.action_space, self.actions[rows])

    def __repr__(self) -> str:
        return f"Rollouts({len(self)} episodes, {self.steps} steps of {self.env_id}, {self.imitate.mean():.0%} worth imitating)"

    @property
    def steps(self) -> int:
        """Environment steps in all episodes."""
        return len(self.rewards) - len(self)

    @property
    def returns(self) -> NDArray[np.float64]:
        """The sum of rewards of every episode, (E,); NaN where a reward is."""
        rewards = np.asarray(self.rewards, dtype=np.float64).copy()
        rewards[self.starts[:-1]] = 0
        return np.add.reduceat(rewards, self.starts[:-1])

    def save(self, path: str | Path) -> None:
        """Write a folder of NumPy arrays, a checksum of every episode, and a description."""
        with atomic_write(path) as folder:
            folder.mkdir()
            for name in _ARRAYS:
                np.save(folder / f"{name}.npy", getattr(self, name))
            checksums = self._checksums()
            np.save(folder / "checksums.npy", checksums)
            description = {
                "format": 1,
                "env_id": self.env_id,
                "env_steps": self.env_steps,
                "observation_space": space_to_dict(self.observation_space),
                "action_space": space_to_dict(self.action_space),
                "checksums": _crc(checksums),
            }
            write_json(folder / "rollouts.json", description)

    @classmethod
    def load(cls, path: str | Path, *, skip_bad: bool = False, notice: Notice = print) -> "Rollouts":
        """
        Read what :meth:`save` wrote; arrays stay on disk and are mapped into memory.

        :param skip_bad: leave episodes out that were damaged or hold a value that cannot be used, instead of refusing all; what
            is left is in memory then
        :param notice: takes a line about episodes left out
        :raises InputError: when there is nothing there, or something else, or it is cut short or damaged, or a value cannot be
            used
        """
        folder = Path(path)
        if not (folder / "rollouts.json").is_file():
            raise InputError(f"{path} holds no rollouts (no rollouts.json in it); Rollouts.save writes such a folder")
        description = read_json(folder / "rollouts.json")
        try:
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
            checksums = np.load(folder / "checksums.npy") if "checksums" in description else None
            rollouts = cls(
                **arrays,
                observation_space=space_from_dict(description["observation_space"]),
                action_space=space_from_dict(description["action_space"]),
                env_id=description["env_id"],
                env_steps=description["env_steps"],
            )
            faults = rollouts.faults()
        except InputError as error:
            raise InputError(f"the rollouts in {path} cannot be used: {error}") from error
        except Exception as error:  # a damaged file can hold anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"the rollouts in {path} cannot be read ({reason}); they may have been cut short") from error
        if checksums is not None:
            if _crc(checksums) != description["checksums"] or len(checksums) != len(rollouts):
                raise InputError(f"the rollouts in {path} are damaged: checksums.npy is not theirs")
            for changed in np.flatnonzero(checksums != rollouts._checksums()).tolist():
                faults.setdefault(changed, Fault(int(rollouts.starts[changed]), "a value differs from what was saved"))
        if skip_bad:
            return rollouts._without(faults, str(path), notice)
        for number, fault in faults.items():
            where = f"in row {fault.row} of the rollouts {path} (episode {number})"
            raise InputError(f"{fault.reason} {where}; skip_bad leaves such episodes out")
        return rollouts

    def check_shape(self) -> None:
        """
        See that the parts fit together.

        :raises InputError: saying what does not fit
        """
        for name in _ARRAYS:
            if not isinstance(getattr(self, name), np.ndarray) or getattr(self, name).ndim == 0:
                raise InputError(f"{name} in these rollouts of {self.env_id} are no array of several values")
        for name, kinds, expected in (
            ("starts", "iu", "integers"),
            ("terminated", "b", "true or false"),
            ("imitate", "b", "true or false"),
        ):
            array: NDArray[Any] = getattr(self, name)
            if array.dtype.kind not in kinds or array.ndim != 1:
                what = f"{name} in these rollouts of {self.env_id}, of shape {array.shape},"
                raise InputError(f"{what} are {array.dtype}; they must be {expected}")
        if len(self) == 0 or len(self.starts) == 0:
            raise InputError(f"there are no episodes in these rollouts of {self.env_id}")
        for name, values, space in (
            ("observations", self.observations, self.observation_space),
            ("actions", self.actions, self.action_space),
            ("rewards", self.rewards, _REWARD),
        ):
            if not is_packed(space, values):
                raise InputError(
                    f"{name} in these rollouts of {self.env_id} are {values.dtype} of shape {values.shape[1:]} each; "
                    f"numbers of shape {packed_shape(space)} were expected"
                )
        rows = len(self.observations)
        if not (len(self.actions) == len(self.rewards) == rows == self.starts[-1] and self.starts[0] == 0):
            raise InputError(
                f"rollouts of {self.env_id} do not fit together: {rows} observations, {len(self.actions)} actions, "
                f"{len(self.rewards)} rewards, {self.starts[-1]} rows in episodes"
            )
        lengths = np.diff(self.starts.astype(np.int64))
        if not len(self.terminated) == len(self.imitate) == len(lengths):
            raise InputError(f"rollouts of {self.env_id} hold flags for another number of episodes than {len(lengths)}")
        if (lengths < 2).any():
            raise InputError(f"episode {np.argmax(lengths < 2)} of these rollouts of {self.env_id} is without a step")

    def _checksums(self) -> NDArray[np.uint32]:
        """A CRC-32 of each episode's rows and flags, (E,)."""
        arrays = [np.asarray(array) for array in (self.observations, self.actions, self.rewards)]
        kinds = [(np.lib.format.dtype_to_descr(array.dtype), array.shape[1:]) for array in arrays]
        flags = np.stack([self.terminated.view(np.uint8), self.imitate.view(np.uint8)], axis=1)
        found = np.empty(len(self), np.uint32)
        for number, (first, end) in enumerate(pairwise(self.starts.tolist())):
            value = _crc(flags[number], zlib.crc32(repr(kinds).encode()))
            for array in arrays:
                value = _crc(array[first:end], value)
            found[number] = value
        return found

    def faults(self) -> dict[int, Fault]:
        """
        Episodes with a value that cannot be used, by number: one that is NaN, or no category of its field.

        Rewards may be anything: a language model of the stream does not read them.
        """
        found: dict[int, Fault] = {}
        for first in range(0, len(self.observations), _ROWS_AT_ONCE):
            rows = np.arange(first, min(first + _ROWS_AT_ONCE, len(self.observations)))
            for name, space, values in (
                ("observation", self.observation_space, self.observations_at(rows)),
                ("action", self.action_space, self.actions_at(rows)),
            ):
                fields, flat = fields_of(space, name), flatten(space, values)
                bounds = [(f.low, f.high) if f.kind == "categorical" else (-np.inf, np.inf) for f in fields]
                low, high = np.array(bounds).reshape(-1, 2).T
                for row, j in np.argwhere(~((flat >= low) & (flat <= high))):  # NaN compares as false
                    reason = "is NaN" if np.isnan(flat[row, j]) else f"is {flat[row, j]:g}, which is no category of it,"
                    episode = int(np.searchsorted(self.starts, rows[row], side="right")) - 1
                    found.setdefault(episode, Fault(int(rows[row]), f"{fields[j].name} {reason}"))
        return found

    def without_faults(self, name: str, notice: Notice = print, numbers: Sequence[int] | None = None) -> "Rollouts":
        """
        The episodes that can be used.

        :param name: what ``notice`` and errors call these rollouts
        :param notice: takes a line about the others
        :param numbers: what they call the episodes; 0, 1, … when ``None``
        :raises InputError: when none can be used
        """
        return self._without(self.faults(), name, notice, numbers)

    def _without(
        self, faults: Mapping[int, Fault], name: str, notice: Notice, numbers: Sequence[int] | None = None
    ) -> "Rollouts":
        called = range(len(self)) if numbers is None else numbers
        report_skipped_episodes(name, {called[number]: fault.reason for number, fault in faults.items()}, len(self), notice)
        return self.select([number for number in range(len(self)) if number not in faults]) if faults else self


def report_skipped_episodes(name: str, reasons: Mapping[int, str], total: int, notice: Notice) -> None:
    """
    A line for every reason for which episodes are left out.

    :param name: of the data
    :param reasons: by the episodes' numbers
    :param total: of episodes in the data
    :raises InputError: when all are left out
    """
    if total and len(reasons) == total:
        raise InputError(f"no episode of {name} can be used: {reasons[min(reasons)]} in episode {min(reasons)}")
    for reason in dict.fromkeys(reasons.values()):
        numbers = [number for number, other in sorted(reasons.items()) if other == reason]
        which = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        notice(f"note: {len(numbers)} of {total} episodes of {name} are left out ({which}): {reason}")
