"""
Recorded episodes: in memory, or memory-mapped from a folder.

Shapes: R rows of all episodes together, E episodes, T environment steps of an episode, F fields of a space.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.data import rollout_files
from dhmm_rl.data.episodes import REWARD_SPACE, Episode, Fault, Notice, check_episode, report_skipped_episodes
from dhmm_rl.data.packing import ARRAY_SPACES, concatenate_packed, is_packed, pack, packed_shape, unpack
from dhmm_rl.errors import InputError
from dhmm_rl.tokens import FieldSpace
from dhmm_rl.tokens.fields import Leaf, fields_of, flatten, leaves_of, space_from_dict, space_to_dict, unflatten

_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Rollouts:
    """
    Episodes in contiguous arrays, one after the other, with one row per step of the stream.

    An episode of T environment steps has T + 1 rows: row t holds observation t, the action that led to it and the reward that
    came with it. In an episode's first row, action and reward are fillers that nothing reads.

    :param observations: observations, (R, ...); for a composite space (Dict, Tuple, …) the values of its fields as
        :func:`pack` returns them, (R, F), or (R,) where the fields have several types
    :param actions: actions, in the same form
    :param rewards: rewards, (R,); NaN where a reward is not known, which leaves the episode without a return
    :param starts: first row of each episode, then R, (E + 1,)
    :param terminated: whether each episode reached a terminal state; otherwise it was cut off, (E,)
    :param imitate: whether each episode's actions are worth imitating, (E,)
    :param observation_space: the environment's observation space
    :param action_space: the environment's action space
    :param env_id: name of the environment
    :param env_steps: environment steps that were taken to collect these rollouts, including those of discarded episodes
    :raises InputError: for arrays that do not fit together
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
        Concatenate episodes.

        :param episodes: the episodes, at least one
        :param observation_space: the environment's observation space
        :param action_space: the environment's action space
        :param env_id: name of the environment
        :param env_steps: environment steps that were taken to collect the episodes
        :raises InputError: for no episodes, and for the first episode that does not fit the spaces
        """
        if not episodes:
            raise InputError(f"there are no episodes in these rollouts of {env_id}")
        episodes = [check_episode(number, episode, observation_space, action_space) for number, episode in enumerate(episodes)]
        return cls(
            observations=concatenate_packed(observation_space, [episode.observations for episode in episodes]),
            # The first row of an episode has no action and no reward: repeat the first action, and write 0.
            actions=concatenate_packed(
                action_space, [part for episode in episodes for part in (episode.actions[:1], episode.actions)]
            ),
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
        """Return the episode with this index."""
        first, end = self.starts[number], self.starts[number + 1]
        return Episode(
            self.observations[first:end],
            self.actions[first + 1 : end],
            self.rewards[first + 1 : end],
            bool(self.terminated[number]),
            bool(self.imitate[number]),
        )

    def __iter__(self) -> Iterator[Episode]:
        """Iterate over the episodes in order."""
        return map(self.__getitem__, range(len(self)))

    def select(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> "Rollouts":
        """
        Return new rollouts of some episodes, in memory.

        :param indices: indices of the episodes
        """
        chosen = [self[int(index)] for index in indices]
        return self.from_episodes(chosen, self.observation_space, self.action_space, self.env_id, self.env_steps)

    def with_imitate(self, imitate: bool | NDArray[np.bool_]) -> "Rollouts":
        """
        Return the same rollouts with other ``imitate`` flags.

        :param imitate: whether actions are worth imitating: one flag for all episodes, or one for each, (E,)
        """
        return replace(self, imitate=np.broadcast_to(imitate, len(self)))

    def with_observation_space(self, space: spaces.Space[Any]) -> "Rollouts":
        """
        Return the same rollouts with observations as values of another space, if it has the same fields.

        The fields may be in another order, or in a :class:`FieldSpace`, or one of some strings where these rollouts have any
        text. If the other space has different fields, the rollouts are returned unchanged.

        :param space: the other observation space
        :raises InputError: for a text that is not one of the other space's strings
        """
        mine, other = (leaves_of(one, "observation") for one in (self.observation_space, space))
        if mine == other and isinstance(self.observation_space, ARRAY_SPACES) == isinstance(space, ARRAY_SPACES):
            return self
        by_name = {leaf.name: leaf for leaf in other}
        if len(mine) != len(other) or not all(_same_field(leaf, by_name.get(leaf.name)) for leaf in mine):
            return self
        values = self.observations_at(np.arange(len(self.observations)))
        if isinstance(self.observation_space, FieldSpace):
            values = unflatten(self.observation_space.space, values)
        if isinstance(space, FieldSpace):
            values = flatten(space.space, values)
        return replace(self, observations=pack(space, values), observation_space=space)

    def observations_at(self, rows: NDArray[np.integer[Any]]) -> Any:
        """Return the observations of these rows as values of their space; ``rows`` may have any shape."""
        return unpack(self.observation_space, self.observations[rows])

    def actions_at(self, rows: NDArray[np.integer[Any]]) -> Any:
        """Return the actions of these rows as values of their space; ``rows`` may have any shape."""
        return unpack(self.action_space, self.actions[rows])

    def __repr__(self) -> str:
        return f"Rollouts({len(self)} episodes, {self.steps} steps of {self.env_id}, {self.imitate.mean():.0%} worth imitating)"

    @property
    def steps(self) -> int:
        """The number of environment steps in all episodes."""
        return len(self.rewards) - len(self)

    @property
    def returns(self) -> NDArray[np.float64]:
        """The sum of rewards of each episode, (E,); NaN for an episode with a reward that is NaN."""
        rewards = np.asarray(self.rewards, dtype=np.float64).copy()
        rewards[self.starts[:-1]] = 0
        return np.add.reduceat(rewards, self.starts[:-1])

    def save(self, path: str | Path) -> None:
        """
        Write a folder of NumPy arrays, a checksum of every episode, and a description.

        :param path: folder to write
        """
        description = {
            "env_id": self.env_id,
            "env_steps": self.env_steps,
            "observation_space": space_to_dict(self.observation_space),
            "action_space": space_to_dict(self.action_space),
        }
        rollout_files.write_folder(path, self._arrays(), description)

    @classmethod
    def load(cls, path: str | Path, *, skip_bad: bool = False, notice: Notice = print) -> "Rollouts":
        """
        Read what :meth:`save` wrote. The arrays stay on disk and are mapped into memory.

        :param path: folder to read
        :param skip_bad: whether to leave out episodes that were damaged or hold a value that cannot be used, instead of
            refusing all; the other episodes are then copied into memory
        :param notice: function that is given a line about episodes that are left out
        :raises InputError: for a folder that is missing, damaged or something else, and for a value that cannot be used
        """
        description = rollout_files.read_description(path)
        try:
            arrays = rollout_files.read_arrays(path)
            checksums = rollout_files.read_checksums(path, description)
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
            for changed in rollout_files.changed_episodes(path, arrays, description, checksums):
                faults.setdefault(changed, Fault(int(rollouts.starts[changed]), "a value differs from what was saved"))
        if skip_bad:
            return rollouts._without(faults, str(path), notice)
        for episode, fault in faults.items():
            where = f"in row {fault.row} of the rollouts {path} (episode {episode})"
            raise InputError(f"{fault.reason} {where}; skip_bad leaves such episodes out")
        return rollouts

    def check_shape(self) -> None:
        """
        Check that the arrays fit together.

        :raises InputError: for the first array that does not fit
        """
        for name in rollout_files.ARRAYS:
            if not isinstance(getattr(self, name), np.ndarray) or getattr(self, name).ndim == 0:
                raise InputError(f"{name} in these rollouts of {self.env_id} must be an array of several values")
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
            ("rewards", self.rewards, REWARD_SPACE),
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

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in rollout_files.ARRAYS}

    def faults(self) -> dict[int, Fault]:
        """
        Find episodes with a value that cannot be used: NaN, or a number that is not a category of its field.

        Rewards may be anything, since a language model of the stream does not read them.

        :return: the first fault of each such episode, by index of the episode
        """
        faults: dict[int, Fault] = {}
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
                    reason = "is NaN" if np.isnan(flat[row, j]) else f"is {flat[row, j]:g}, which is not one of its categories,"
                    episode = int(np.searchsorted(self.starts, rows[row], side="right")) - 1
                    faults.setdefault(episode, Fault(int(rows[row]), f"{fields[j].name} {reason}"))
        return faults

    def without_faults(self, name: str, notice: Notice = print, numbers: Sequence[int] | None = None) -> "Rollouts":
        """
        Return new rollouts of the episodes that can be used.

        :param name: name of these rollouts, for notices and errors
        :param notice: function that is given a line about episodes that are left out
        :param numbers: number of each episode, for notices and errors; 0, 1, … when ``None``
        :raises InputError: for rollouts without an episode that can be used
        """
        return self._without(self.faults(), name, notice, numbers)

    def _without(
        self, faults: Mapping[int, Fault], name: str, notice: Notice, numbers: Sequence[int] | None = None
    ) -> "Rollouts":
        numbers = range(len(self)) if numbers is None else numbers
        reasons = {numbers[episode]: fault.reason for episode, fault in faults.items()}
        report_skipped_episodes(name, reasons, len(self), notice)
        return self.select([episode for episode in range(len(self)) if episode not in faults]) if faults else self


def _same_field(leaf: Leaf, other: Leaf | None) -> bool:
    """Whether two arrays of fields hold the same values, or both hold strings."""
    return other is not None and (leaf == other or bool(leaf.labels and other.labels))
