"""
Recorded episodes: in memory, or memory-mapped from a folder.

Shapes: R rows of all episodes together, E episodes, F fields of a space.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.tokens import FieldSpace
from dhmm_rl.tokens.fields import fields_of, flatten, leaves_of, space_from_dict, space_to_dict, unflatten

Notice = Callable[[str], None]

_ARRAYS = ("observations", "actions", "rewards", "starts", "terminated", "imitate")
PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_ROWS_AT_ONCE = 10_000


def pack(space: spaces.Space[Any], values: Any) -> NDArray[Any]:
    """
    Values of a space as rollouts keep them.

    :param values: with any leading shape
    :return: of a space whose values are arrays, these; of a composite one (Dict, Tuple, …) its fields' values, (..., F)
    """
    return np.asarray(values) if isinstance(space, PLAIN) else flatten(space, values)


def kept_shape(space: spaces.Space[Any], name: str) -> tuple[int, ...]:
    """The shape of one value of a space as :func:`pack` gives it; ``name`` is what errors call the space."""
    return space.shape or () if isinstance(space, PLAIN) else (len(fields_of(space, name)),)


def unpack(space: spaces.Space[Any], kept: NDArray[Any]) -> Any:
    """Invert :func:`pack`."""
    return kept if isinstance(space, PLAIN) else unflatten(space, kept)


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

    :param observations: (R, ...); of a composite space (Dict, Tuple, …) the values of its fields, (R, F)
    :param actions: (R, ...), in the same way
    :param rewards: (R,); may be NaN where they are not known, which leaves the episode without a return
    :param starts: the first row of every episode, and R at the end, (E + 1,)
    :param terminated: whether the episode reached a terminal state (else it was cut off), (E,)
    :param imitate: whether the episode's actions are worth imitating, (E,)
    :param observation_space: of the environment
    :param action_space: of the environment
    :param env_id: the environment's name
    :param env_steps: environment steps that were taken to collect this, those of discarded episodes included
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

        :raises InputError: when there are none
        """
        if not episodes:
            raise InputError(f"there are no episodes in these rollouts of {env_id}")
        return cls(
            observations=np.concatenate([episode.observations for episode in episodes]),
            actions=np.concatenate([part for episode in episodes for part in (episode.actions[:1], episode.actions)]),
            rewards=np.concatenate([part for episode in episodes for part in ([0], episode.rewards)]).astype(np.float32),
            starts=np.concatenate([[0], np.cumsum([len(episode.observations) for episode in episodes])]),
            terminated=np.array([episode.terminated for episode in episodes]),
            imitate=np.array([episode.imitate for episode in episodes]),
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

    def imitating(self, imitate: bool | NDArray[np.bool_]) -> "Rollouts":
        """The same, with this said of the actions of all episodes or of each (E,)."""
        return replace(self, imitate=np.broadcast_to(imitate, len(self)))

    def seen_as(self, space: spaces.Space[Any]) -> "Rollouts":
        """
        The same with observations as values of another space, if that holds the same parts: in another order, as fields
        (:class:`FieldSpace`), or one of some strings where this holds any text. Otherwise these rollouts as they are.

        :raises InputError: for a text that is none of the other space's strings
        """
        mine, other = (leaves_of(one, "observation") for one in (self.observation_space, space))
        if mine == other and isinstance(self.observation_space, PLAIN) == isinstance(space, PLAIN):
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
            return replace(self, observations=flatten(space.space, values).astype(space.dtype), observation_space=space)
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
        """Write a folder of NumPy arrays and a description."""
        with atomic_write(path) as folder:
            folder.mkdir()
            for name in _ARRAYS:
                np.save(folder / f"{name}.npy", getattr(self, name))
            description = {
                "format": 1,
                "env_id": self.env_id,
                "env_steps": self.env_steps,
                "observation_space": space_to_dict(self.observation_space),
                "action_space": space_to_dict(self.action_space),
            }
            (folder / "rollouts.json").write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path, *, skip_bad: bool = False, notice: Notice = print) -> "Rollouts":
        """
        Read what :meth:`save` wrote; arrays stay on disk and are mapped into memory.

        :param skip_bad: leave episodes out that hold a value that cannot be used, instead of refusing all; what is left is in
            memory then
        :param notice: takes a line about episodes left out
        :raises InputError: when there is nothing there, or something else, or it is cut short, or a value cannot be used
        """
        folder = Path(path)
        if not (folder / "rollouts.json").is_file():
            raise InputError(f"{path} holds no rollouts (no rollouts.json in it); Rollouts.save writes such a folder")
        try:
            description = json.loads((folder / "rollouts.json").read_text())
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
            rollouts = cls(
                **arrays,
                observation_space=space_from_dict(description["observation_space"]),
                action_space=space_from_dict(description["action_space"]),
                env_id=description["env_id"],
                env_steps=description["env_steps"],
            )
        except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
            raise InputError(f"the rollouts in {path} cannot be read ({error}); they may have been cut short") from error
        rollouts.check_shape()
        if skip_bad:
            return rollouts.without_faults(str(path), notice)
        for fault in rollouts.faults().values():
            raise InputError(f"{fault.reason} in row {fault.row} of the rollouts {path}; skip_bad leaves such episodes out")
        return rollouts

    def check_shape(self) -> None:
        """
        See that the parts fit together.

        :raises InputError: saying what does not fit
        """
        if self.starts.dtype.kind not in "iu":
            raise InputError(f"starts in these rollouts of {self.env_id} are {self.starts.dtype}; they must be integers")
        if len(self) == 0 or len(self.starts) == 0:
            raise InputError(f"there are no episodes in these rollouts of {self.env_id}")
        rows = len(self.observations)
        lengths = np.diff(self.starts)
        for name, values, shape in (
            ("observations", self.observations, kept_shape(self.observation_space, "observation")),
            ("actions", self.actions, kept_shape(self.action_space, "action")),
            ("rewards", self.rewards, ()),
        ):
            if values.shape[1:] != shape or values.dtype.kind not in "biuf":
                raise InputError(
                    f"{name} in these rollouts of {self.env_id} are {values.dtype} of shape {values.shape[1:]} each; "
                    f"numbers of shape {shape} were expected"
                )
        if not (len(self.actions) == len(self.rewards) == rows == self.starts[-1] and self.starts[0] == 0):
            raise InputError(
                f"rollouts of {self.env_id} do not fit together: {rows} observations, {len(self.actions)} actions, "
                f"{len(self.rewards)} rewards, {self.starts[-1]} rows in episodes"
            )
        if not len(self.terminated) == len(self.imitate) == len(lengths) or (lengths < 2).any():
            raise InputError(
                f"rollouts of {self.env_id} hold an episode without a step, or flags for another number of episodes"
            )

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
        faults = self.faults()
        called = range(len(self)) if numbers is None else numbers
        tell_left_out(name, {called[number]: fault.reason for number, fault in faults.items()}, len(self), notice)
        return self.select([number for number in range(len(self)) if number not in faults]) if faults else self


def tell_left_out(name: str, reasons: Mapping[int, str], total: int, notice: Notice) -> None:
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
