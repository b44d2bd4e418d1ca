"""
Recorded episodes: in memory, or memory-mapped from a folder.

Shapes: R rows of all episodes together, E episodes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.tokens.fields import fields_of, flatten, space_from_dict, space_to_dict

_ARRAYS = ("observations", "actions", "rewards", "starts", "terminated", "imitate")


@dataclass(frozen=True)
class Rollouts:
    """
    Episodes one after the other in contiguous arrays, a row for every step of the stream.

    An episode of T environment steps has T + 1 rows: row t holds observation t, the action that led to it and the reward that
    came with it. In an episode's first row action and reward are fillers that nothing reads.

    :param observations: (R, ...)
    :param actions: (R, ...)
    :param rewards: (R,)
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

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self.terminated)

    def __repr__(self) -> str:
        return f"Rollouts({len(self)} episodes, {self.steps} steps of {self.env_id}, {self.imitate.mean():.0%} worth imitating)"

    @property
    def steps(self) -> int:
        """Environment steps in all episodes."""
        return len(self.rewards) - len(self)

    @property
    def returns(self) -> NDArray[np.float64]:
        """The sum of rewards of every episode, (E,)."""
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
    def load(cls, path: str | Path) -> "Rollouts":
        """
        Read what :meth:`save` wrote; arrays stay on disk and are mapped into memory.

        :raises InputError: when there is nothing there, or something else, or it is cut short or not finite
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
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"the rollouts in {path} cannot be read ({error}); they may have been cut short") from error
        rollouts.check()
        return rollouts

    def check(self) -> None:
        """
        See that the parts fit together and that every value can be used.

        :raises InputError: saying what does not fit, with the field's name where there is one
        """
        rows = len(self.observations)
        lengths = np.diff(self.starts)
        if len(self) == 0:
            raise InputError(f"there are no episodes in these rollouts of {self.env_id}")
        if not (len(self.actions) == len(self.rewards) == rows == self.starts[-1] and self.starts[0] == 0):
            raise InputError(
                f"rollouts of {self.env_id} do not fit together: {rows} observations, {len(self.actions)} actions, "
                f"{len(self.rewards)} rewards, {self.starts[-1]} rows in episodes"
            )
        if not len(self.terminated) == len(self.imitate) == len(lengths) or (lengths < 2).any():
            raise InputError(
                f"rollouts of {self.env_id} hold an episode without a step, or flags for another number of episodes"
            )
        for name, space, values in (
            ("observation", self.observation_space, self.observations),
            ("action", self.action_space, self.actions),
        ):
            flat = flatten(space, values)
            for j, of in enumerate(fields_of(space, name)):
                if np.isnan(flat[..., j]).any():
                    raise InputError(f"{of.name} is NaN in row {int(np.isnan(flat[..., j]).argmax())} of the rollouts")
        if not np.isfinite(self.rewards).all():
            raise InputError(f"the reward is not finite in row {int((~np.isfinite(self.rewards)).argmax())} of the rollouts")
