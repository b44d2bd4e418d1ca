"""
Training sets: windows of token streams, all of one length, cut out of rollouts.

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
"""Number of rows of images that are read and encoded together."""


class Batch(NamedTuple):
    """
    Sequences to train on.

    :param input_ids: token ids, (B, L, C)
    :param labels: ids of the step that follows each step, (B, L, C)
    :param weights: weight of each label in the loss, (B, L, C)
    :param position_ids: number of each step in its episode, from 0, (B, L); for learned positions
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    position_ids: Tensor


class StreamDataset:
    """
    Every window of ``length`` steps of every episode; a window never holds steps of two episodes.

    A window may begin before its episode does, as a policy's window does, so each step is in equally many windows. Rollouts are
    read and tokenized when a batch is requested, so they may be larger than memory, and dither is drawn for each batch. Only
    images, which are slow to encode and much larger than their ids, are encoded once.

    :param rollouts: the episodes
    :param tokenizer: tokenizer of the rollouts' spaces
    :param length: number of steps of a window, L
    :param episodes: indices of the episodes to use; all episodes when ``None``
    :param field_weights: weight of fields in the loss, by name; 1 for fields that are not named
    :param weight: weight of all these windows in the loss
    :param dither: seed of the dithering of real fields; no dithering when ``None``. Episodes to be imitated are never dithered:
        their actions answer exactly what was observed
    :raises InputError: for rollouts of spaces that differ from the tokenizer's, and for a weight that names no field
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
        # A terminated episode has one step more than rows: DONE.
        self.steps = (np.diff(rollouts.starts) + rollouts.terminated)[self.episodes]
        observation_slots = tokenizer.slots[tokenizer.action_slots :]
        self._dithers_bins = dither is not None and any(slot.ordinal for slot in observation_slots)
        self._cached_ids: NDArray[np.int32] | None = None  # ids of every row, (R, C), where there are images
        if tokenizer.codebooks:
            self._cached_ids = np.empty((len(rollouts.rewards), len(names)), dtype=np.int32)
            self._is_cached = np.zeros(len(self._cached_ids), dtype=np.bool_)
        # The first window of an episode begins length - 1 steps before the episode. The last one begins at its last step that
        # is followed by another. Windows of all episodes are numbered one after the other; these are the ends of their ranges.
        self._ends = np.cumsum(self.steps - 1 + length - 1)

    def __len__(self) -> int:
        """The number of windows."""
        return int(self._ends[-1])

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """Return the windows with these indices."""
        indices = np.asarray(indices)
        number = np.searchsorted(self._ends, indices, side="right")
        first_step = indices - self._ends[number] + self.steps[number] - 1
        rng = None if self.dither is None else np.random.default_rng([self.dither, *indices])
        return self._make_batch(self.episodes[number], first_step, rng)

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the indices of all windows in random order."""
        return rng.permutation(len(self))

    def eval_indices(self) -> NDArray[np.int64]:
        """Return indices of windows that together hold every label once."""
        per_episode = [
            end - (steps - 1) + np.arange(0, steps - 1, self.length) for end, steps in zip(self._ends, self.steps, strict=True)
        ]
        return np.concatenate(per_episode)

    def _make_batch(self, episode: NDArray[Any], first_step: NDArray[Any], rng: np.random.Generator | None) -> Batch:
        """
        Cut windows out of the rollouts.

        :param episode: episode of each window, (B,)
        :param first_step: number of the window's first step in its episode, negative before the episode, (B,)
        :param rng: random numbers of the dither; no dither when ``None``
        """
        # Steps of each window and the one step that follows it, (B, L + 1), and their rows. Steps outside the episode get a
        # row of it for now, and other ids below.
        step = first_step[:, None] + np.arange(self.length + 1)
        first_row, num_rows = self.rollouts.starts[episode, None], np.diff(self.rollouts.starts)[episode, None]
        row = first_row + np.clip(step, 0, num_rows - 1)
        imitated = self.rollouts.imitate[episode]
        tokens = self._encode_rows(row, rng)
        if rng is not None and imitated.any():
            tokens[imitated] = self._encode_rows(row[imitated], None)

        # The grammar of the stream: RESET before the first observation, padding outside the episode, DONE after its end.
        tokens[..., : self.tokenizer.action_slots][step == 0] = RESET
        tokens[(step < 0) | (step >= num_rows)] = PAD_ID
        tokens[(step == num_rows) & self.rollouts.terminated[episode, None]] = self.tokenizer.done_step()

        # Labels are the steps that follow. An episode's first step is not a label, since nothing comes before it.
        ids = torch.from_numpy(tokens)
        labels = ids[:, 1:].clone()
        labels[torch.from_numpy(step[:, 1:] <= 0)] = PAD_ID
        weights = np.broadcast_to(self.weights, tokens[:, 1:].shape).copy()
        weights[~imitated, :, : self.tokenizer.action_slots] = 0
        return Batch(ids[:, :-1], labels, torch.from_numpy(weights), torch.from_numpy(np.maximum(step[:, :-1], 0)))

    def _encode_rows(self, row: NDArray[Any], rng: np.random.Generator | None) -> NDArray[np.int64]:
        """Return the ids (..., C) of rows (...), from the cache if there is one and they are not dithered."""
        if self._cached_ids is None or (rng is not None and self._dithers_bins):
            return self._encode(row, rng)
        missing = np.unique(row[~self._is_cached[row]])
        for first in range(0, len(missing), ROWS_AT_ONCE):
            some = missing[first : first + ROWS_AT_ONCE]
            self._cached_ids[some] = self._encode(some, None)
        self._is_cached[missing] = True
        ids: NDArray[np.int64] = self._cached_ids[row].astype(np.int64)
        return ids

    def _encode(self, row: NDArray[Any], rng: np.random.Generator | None) -> NDArray[np.int64]:
        return self.tokenizer.next_step(self.rollouts.actions_at(row), self.rollouts.observations_at(row), rng)


class MixedDataset:
    """
    The windows of several sources, each shown as often as the source's weight says.

    A source of weight 1 shows each of its windows once per epoch, a source of weight 2.5 two or three times, and a source of
    weight 0.1 a tenth of its windows. Which windows these are is drawn for each epoch.

    :param datasets: windows of each source, of the same tokenizer and length
    :param weights: weight of each source
    """

    def __init__(self, datasets: Sequence[StreamDataset], weights: Sequence[float]) -> None:
        self.datasets, self.length = datasets, datasets[0].length
        self.shown = [max(1, round(weight * len(dataset))) for dataset, weight in zip(datasets, weights, strict=True)]
        # Windows are numbered source after source; these are the ends of their ranges.
        self._ends = np.cumsum([len(dataset) for dataset in datasets])

    def __len__(self) -> int:
        """The number of windows."""
        return int(self._ends[-1])

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """Return the windows with these indices; those of the first source come first."""
        indices = np.asarray(indices)
        source = np.searchsorted(self._ends, indices, side="right")
        # Fetch a batch from each source, then restore the order that was asked for.
        positions = [np.flatnonzero(source == number) for number in range(len(self.datasets))]
        batches = [
            dataset[indices[mine] - (end - len(dataset))]
            for dataset, end, mine in zip(self.datasets, self._ends, positions, strict=True)
            if len(mine)
        ]
        order = torch.from_numpy(np.argsort(np.concatenate(positions)))
        return Batch(*(torch.cat(tensors)[order] for tensors in zip(*batches, strict=True)))

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return indices of windows in random order, each about as often as the weight of its source says."""
        chosen = []
        for dataset, end, shown in zip(self.datasets, self._ends, self.shown, strict=True):
            repeats, rest = divmod(shown, len(dataset))
            repeated = np.tile(np.arange(len(dataset)), repeats)
            chosen.append(np.concatenate([repeated, rng.choice(len(dataset), rest, replace=False)]) + end - len(dataset))
        return rng.permutation(np.concatenate(chosen))

    def eval_indices(self) -> NDArray[np.int64]:
        """Return indices of windows that together hold every label of every source once."""
        per_source = [
            dataset.eval_indices() + end - len(dataset) for dataset, end in zip(self.datasets, self._ends, strict=True)
        ]
        return np.concatenate(per_source)
