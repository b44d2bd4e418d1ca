"""
Datasets of sentences, for training a model on a language.

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
    Make a batch of sentences, padded at the end with −1.

    :param language: language of the instances
    :param instances: B instances
    :param rng: random number generator for the offsets of learned position ids; the language's own offset when ``None``
    :return: ids, labels (−1 on the prompt and on padding) and weights of 1, each of shape (B, T), and position ids, of shape
        (B, T, P) if the model uses their differences, otherwise (B, T)
    :raises InputError: for a sentence with more learned position ids than ``max_position``
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
    """Curriculum: largest size at training progress in [0, 1]. See the language's ``growth``."""
    low, high = language.sizes
    return high if progress >= language.growth else low + int((high - low + 1) * (progress / language.growth) ** 2)


class FreshSentences:
    """
    A training set that never repeats a sentence: sentences of random sizes are drawn when a batch is fetched.

    It has a single epoch, in order. Sentence n of ``count`` is drawn at training progress n / ``count``. The content of a batch
    depends only on its first index and the seed, so a resumed training sees the same batches as one without interruption.

    :param language: language of the sentences
    :param count: number of sentences
    :param seed: seed for the sentences
    """

    length = 1

    def __init__(self, language: Language[Any], count: int, seed: int) -> None:
        self.language, self.count, self.seed = language, count, seed

    def __len__(self) -> int:
        """Number of sentences."""
        return self.count

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """Return the batch of these indices."""
        rng = np.random.default_rng([self.seed, int(indices[0])])
        high = largest_size(self.language, int(indices[0]) / self.count)
        sizes = rng.integers(self.language.sizes[0], high + 1, len(indices))
        return make_batch(self.language, [self.language.instance(int(size), rng) for size in sizes], rng)

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all indices in order."""
        return np.arange(self.count)

    def eval_indices(self) -> NDArray[np.int64]:
        """Return all indices."""
        return np.arange(self.count)


class FixedSentences:
    """
    A fixed set of sentences, either held out or to train on.

    :param language: language of the sentences
    :param instances: instances of the sentences
    :param seed: seed for random offsets of the position ids; the language's own offsets when ``None``
    """

    length = 1

    def __init__(self, language: Language[Any], instances: Sequence[Any], seed: int | None = None) -> None:
        self.language, self.instances, self.seed = language, list(instances), seed

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.instances)

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """Return the batch of these indices."""
        rng = None if self.seed is None else np.random.default_rng([self.seed, *indices])
        return make_batch(self.language, [self.instances[int(number)] for number in indices], rng)

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all indices in random order."""
        return rng.permutation(len(self))

    def eval_indices(self) -> NDArray[np.int64]:
        """Return all indices."""
        return np.arange(len(self))
