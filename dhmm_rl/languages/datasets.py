"""
Sentences of a language as a model is trained on them.

Shapes: B sentences, T tokens of the longest, P axes of position ids.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dhmm_rl.data import Batch
from dhmm_rl.errors import InputError
from dhmm_rl.languages.language import Language
from dhmm_rl.tokens import PAD_ID


def make_batch(language: Language[Any], instances: Sequence[Any], rng: np.random.Generator | None = None) -> Batch:
    """
    Sentences side by side, padded with -1 behind.

    :param instances: B of them
    :param rng: draws an offset of each sentence's learned position ids; the language's own when ``None``
    :return: ids, labels (-1 where nothing is to be learned: on the prompt and the padding), weights of 1, each (B, T), and
        position ids: (B, T, P) in a language that tells them by their differences, else (B, T)
    :raises InputError: for a sentence whose learned position ids do not fit under ``max_position``
    """
    sentences = [language.sentence(instance) for instance in instances]
    length = max(len(sentence.ids) for sentence in sentences)
    ids, labels = np.full((2, len(sentences), length), PAD_ID)
    positions = np.zeros((*ids.shape, sentences[0].positions.shape[1]), dtype=np.int64)
    for row, sentence in enumerate(sentences):
        here = slice(len(sentence.ids))
        ids[row, here], labels[row, here], positions[row, here] = sentence
    if not language.relative:
        positions = positions[..., 0]
    if language.coupling == "learned":
        spare = language.max_position - 1 - positions.max(axis=1)
        if spare.min() < 0:
            raise InputError(
                f"position ids up to {positions.max()} are needed; max_position is {language.max_position} and must be larger"
            )
        if rng is not None:
            positions += rng.integers(spare + 1)[:, None]
        else:
            positions += np.array([[language.offset(language.prompt(instance))] for instance in instances])
    return Batch(*map(torch.from_numpy, (ids, labels, np.ones(ids.shape, dtype=np.float32), positions)))


def largest_size(language: Language[Any], progress: float) -> int:
    """The largest size to train on when a share of the training is over; see ``growth``."""
    low, high = language.sizes
    return high if progress >= language.growth else low + int((high - low + 1) * (progress / language.growth) ** 2)


class FreshSentences:
    """
    A training set that never repeats: its sentences are drawn when a batch is asked for, each of a random size.

    It is for one epoch, in the order of numbers: number n of ``count`` is drawn when n / ``count`` of the training is over, and
    what the batch that begins with it holds depends on n and the seed alone. So a training that was interrupted goes on with
    the batches it would have had.

    :param count: how many sentences
    :param seed: of the sentences
    """

    length = 1

    def __init__(self, language: Language[Any], count: int, seed: int) -> None:
        self.language, self.count, self.seed = language, count, seed

    def __len__(self) -> int:
        """The number of sentences."""
        return self.count

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """The batch of these numbers."""
        rng = np.random.default_rng([self.seed, int(indices[0])])
        high = largest_size(self.language, int(indices[0]) / self.count)
        sizes = rng.integers(self.language.sizes[0], high + 1, len(indices))
        return make_batch(self.language, [self.language.instance(int(size), rng) for size in sizes], rng)

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """All numbers, in their order."""
        return np.arange(self.count)

    def eval_indices(self) -> NDArray[np.int64]:
        """All numbers."""
        return np.arange(self.count)


class FixedSentences:
    """
    A set of given sentences: held out, or all that there is to learn from.

    :param instances: the sentences'
    :param seed: of the position ids' offsets; none when ``None``
    """

    length = 1

    def __init__(self, language: Language[Any], instances: Sequence[Any], seed: int | None = None) -> None:
        self.language, self.instances, self.seed = language, list(instances), seed

    def __len__(self) -> int:
        """The number of sentences."""
        return len(self.instances)

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """The sentences with these numbers."""
        rng = None if self.seed is None else np.random.default_rng([self.seed, *indices])
        return make_batch(self.language, [self.instances[int(number)] for number in indices], rng)

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """All numbers, in random order."""
        return rng.permutation(len(self))

    def eval_indices(self) -> NDArray[np.int64]:
        """All numbers."""
        return np.arange(len(self))
