"""
The training set: fixed-size windows of token streams, cut out of contiguous rollouts.

Shapes: B windows, L steps, C slots.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dhmm_rl.data.rollouts import Rollouts
from dhmm_rl.errors import InputError
from dhmm_rl.tokens import PAD_ID, RESET, Tokenizer

ROWS_AT_ONCE = 256
"""This many rows of images are read and encoded together."""


class Batch(NamedTuple):
    """
    :param input_ids: (B, L, C)
    :param labels: the step that follows each step, (B, L, C)
    :param weights: of each label in the loss, (B, L, C)
    :param position_ids: how many steps of its episode lie before each step, (B, L); for learned positions
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    position_ids: Tensor


class StreamDataset:
    """
    Every window of ``length`` steps of every episode; never a step of two.

    Windows may begin before their episode does, as a policy's do: so each step stands in equally many. Rollouts are read and
    tokenized when a batch is asked for, so they may be larger than memory, and dither is drawn anew each time. Only images,
    which are slow to encode and much larger than their ids, are encoded once.

    :param rollouts: the episodes
    :param tokenizer: theirs
    :param length: L
    :param episodes: numbers of the episodes to use; all when ``None``
    :param field_weights: weight of fields in the loss, by name; 1 where not given
    :param weight: of all these windows in the loss
    :param dither: seeds the dithering of real fields; none when ``None``. Episodes to be imitated are read as they are: their
        actions answer what was seen, not what may have been
    :raises InputError: when the spaces are not the tokenizer's, or a weight names no field
    """

    def __init__(
        self,
        rollouts: Rollouts,
        tokenizer: Tokenizer,
        length: int,
        *,
        episodes: NDArray[np.integer[Any]] | None = None,
        field_weights: dict[str, float] | None = None,
        weight: float = 1.0,
        dither: int | None = None,
    ) -> None:
        if length < 1:
            raise InputError(f"the length of windows is {length}; it must be at least 1")
        tokenizer.check_spaces(rollouts.observation_space, rollouts.action_space)
        names = [slot.name for slot in tokenizer.slots]
        for name in field_weights or {}:
            if name not in names:
                raise InputError(f"field weights name {name!r}; the fields are {', '.join(names)}")
        self.rollouts, self.tokenizer, self.length, self.dither = rollouts, tokenizer, length, dither
        self.weights = np.array([weight * (field_weights or {}).get(name, 1.0) for name in names], dtype=np.float32)
        self.episodes = np.arange(len(rollouts)) if episodes is None else episodes
        # A terminated episode has one step more: DONE.
        self.steps = (np.diff(rollouts.starts) + rollouts.terminated)[self.episodes]
        observed = tokenizer.slots[tokenizer.action_slots :]
        self._dithered = dither is not None and any(slot.ordinal for slot in observed)
        self._ids: NDArray[np.int32] | None = None  # of every row, (R, C), where they are kept
        if tokenizer.codebooks:
            self._ids = np.empty((len(rollouts.rewards), len(names)), dtype=np.int32)
            self._encoded = np.zeros(len(self._ids), dtype=np.bool_)
        # Windows of an episode begin from length - 1 before it to its last step that is followed by another.
        self._ends = np.cumsum(self.steps - 1 + length - 1)

    def __len__(self) -> int:
        """The number of windows."""
        return int(self._ends[-1])

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """The windows with these numbers."""
        indices = np.asarray(indices)
        place = np.searchsorted(self._ends, indices, side="right")
        first = indices - self._ends[place] + self.steps[place] - 1
        return self._batch(
            self.episodes[place], first, None if self.dither is None else np.random.default_rng([self.dither, *indices])
        )

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Numbers of all windows, in random order."""
        return rng.permutation(len(self))

    def eval_indices(self) -> NDArray[np.int64]:
        """Numbers of windows that together hold every label once."""
        per_episode = [
            end - (steps - 1) + np.arange(0, steps - 1, self.length) for end, steps in zip(self._ends, self.steps, strict=True)
        ]
        return np.concatenate(per_episode)

    def _batch(self, episode: NDArray[Any], first: NDArray[Any], rng: np.random.Generator | None) -> Batch:
        step = first[:, None] + np.arange(self.length + 1)
        start, rows = self.rollouts.starts[episode, None], np.diff(self.rollouts.starts)[episode, None]
        row = start + np.clip(step, 0, rows - 1)
        imitated = self.rollouts.imitate[episode]
        tokens = self._read(row, rng)
        if rng is not None and imitated.any():
            tokens[imitated] = self._read(row[imitated], None)

        tokens[..., : self.tokenizer.action_slots][step == 0] = RESET
        tokens[(step < 0) | (step >= rows)] = PAD_ID
        tokens[(step == rows) & self.rollouts.terminated[episode, None]] = self.tokenizer.done_step()

        ids = torch.from_numpy(tokens)
        labels = ids[:, 1:].clone()
        labels[torch.from_numpy(step[:, 1:] <= 0)] = PAD_ID  # nothing comes before an episode's first step
        weights = np.broadcast_to(self.weights, tokens[:, 1:].shape).copy()
        weights[~imitated, :, : self.tokenizer.action_slots] = 0
        return Batch(ids[:, :-1], labels, torch.from_numpy(weights), torch.from_numpy(np.maximum(step[:, :-1], 0)))

    def _read(self, row: NDArray[Any], rng: np.random.Generator | None) -> NDArray[np.int64]:
        if self._ids is None or (rng is not None and self._dithered):
            return self._encode(row, rng)
        missing = np.unique(row[~self._encoded[row]])
        for first in range(0, len(missing), ROWS_AT_ONCE):
            some = missing[first : first + ROWS_AT_ONCE]
            self._ids[some] = self._encode(some, None)
        self._encoded[missing] = True
        ids: NDArray[np.int64] = self._ids[row].astype(np.int64)
        return ids

    def _encode(self, row: NDArray[Any], rng: np.random.Generator | None) -> NDArray[np.int64]:
        return self.tokenizer.next_step(self.rollouts.actions_at(row), self.rollouts.observations_at(row), rng)


class MixedDataset:
    """
    The windows of several sources, each shown so often as its weight says.

    A source of weight 1 shows each of its windows once an epoch; one of weight 2.5 shows them two or three times, and one of
    weight 0.1 a tenth of them. Which ones is drawn anew for each epoch.

    :param parts: one for each source, of the same tokenizer and length
    :param weights: theirs
    """

    def __init__(self, parts: Sequence[StreamDataset], weights: Sequence[float]) -> None:
        self.parts, self.length = parts, parts[0].length
        self.shown = [max(1, round(weight * len(part))) for part, weight in zip(parts, weights, strict=True)]
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """The number of windows."""
        return int(self._ends[-1])

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """The windows with these numbers: those of the first source come first."""
        indices = np.asarray(indices)
        source = np.searchsorted(self._ends, indices, side="right")
        found = [np.flatnonzero(source == number) for number in range(len(self.parts))]
        batches = [
            part[indices[places] - (end - len(part))]
            for part, end, places in zip(self.parts, self._ends, found, strict=True)
            if len(places)
        ]
        order = torch.from_numpy(np.argsort(np.concatenate(found)))
        return Batch(*(torch.cat(tensors)[order] for tensors in zip(*batches, strict=True)))

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Numbers of windows in random order, each about as often as its source's weight says."""
        drawn = []
        for part, end, shown in zip(self.parts, self._ends, self.shown, strict=True):
            whole, rest = divmod(shown, len(part))
            every = np.tile(np.arange(len(part)), whole)
            drawn.append(np.concatenate([every, rng.choice(len(part), rest, replace=False)]) + end - len(part))
        return rng.permutation(np.concatenate(drawn))

    def eval_indices(self) -> NDArray[np.int64]:
        """Numbers of windows that together hold every label of every source once."""
        return np.concatenate([part.eval_indices() + end - len(part) for part, end in zip(self.parts, self._ends, strict=True)])
