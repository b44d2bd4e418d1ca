"""
Statistics over several environments (Agarwal et al. 2021, arXiv 2108.13264), with stratified bootstrap intervals.

A bootstrap sample draws runs with replacement within every environment, so all environments are in every sample.

Shapes: R runs of an environment, M runs of all environments, T thresholds, D bootstrap samples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.report import Estimate

Floats = NDArray[np.float64]
Scores = Sequence[Floats]
"""Scores of an agent: for each environment those of its runs, (R,). The numbers of runs can differ."""

DRAWS = 2000
"""Number of bootstrap samples, D."""


def resample(scores: Scores, seed: int = 0) -> list[Floats]:
    """
    Draw bootstrap samples of runs within every environment.

    :param scores: scores by environment
    :param seed: seed of the draws
    :return: samples by environment, each (D, R)
    """
    rng = np.random.default_rng(seed)
    return [runs[rng.integers(0, len(runs), (DRAWS, len(runs)))] for runs in scores]


def interquartile_mean(scores: Scores) -> Estimate:
    """
    Return the mean of the middle half of all runs of all environments, with its 95 % interval.

    :param scores: scores by environment
    """
    mean = float(stats.trim_mean(np.concatenate(scores), 0.25))
    return _estimate(mean, stats.trim_mean(np.concatenate(resample(scores), axis=1), 0.25, axis=1), scores)


def performance_profile(scores: Scores, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
    """
    Return the fraction of runs with a score above each threshold, with the ends of its 95 % interval, three times (T,).

    :param scores: scores by environment
    :param thresholds: thresholds, (T,)
    """
    runs, samples = np.concatenate(scores), np.concatenate(resample(scores), axis=1)
    fraction = np.array([(runs > threshold).mean() for threshold in thresholds])
    draws = np.array([(samples > threshold).mean(axis=1) for threshold in thresholds])
    low, high = np.percentile(draws, [2.5, 97.5], axis=1)
    return fraction, low, high


def probability_of_improvement(first: Scores, second: Scores) -> Estimate:
    """
    Return the probability that a run of one agent has a higher score than a run of another in the same environment.

    It is the mean over environments of the fraction of pairs of runs in which the first agent is ahead; ties count half. The
    scales of the environments' returns do not matter.

    :param first: scores of the first agent by environment
    :param second: scores of the second agent in the same environments
    """
    mean = np.mean([_wins(a, b) for a, b in zip(first, second, strict=True)])
    draws = np.mean([_wins(a, b) for a, b in zip(resample(first, 0), resample(second, 1), strict=True)], axis=0)
    return _estimate(float(mean), draws, [*first, *second])


def difference(first: Floats, second: Floats) -> Estimate:
    """
    Return the difference of the mean scores of two agents in one environment, with its 95 % interval.

    :param first: scores of the first agent, (R,)
    :param second: scores of the second agent, (R,)
    """
    (ours,), (others,) = resample([first], 0), resample([second], 1)
    return _estimate(float(first.mean() - second.mean()), ours.mean(axis=1) - others.mean(axis=1), [first, second])


def _wins(first: Floats, second: Floats) -> Floats:
    """The fraction of pairs in which the first score is higher; ties count half. Leading axes are bootstrap samples."""
    a, b = first[..., :, None], second[..., None, :]
    fraction: Floats = ((a > b) + 0.5 * (a == b)).mean(axis=(-2, -1))
    return fraction


def _estimate(mean: float, draws: Floats, scores: Scores) -> Estimate:
    """An estimate with the percentile interval of its bootstrap samples, NaN if an environment has one run only."""
    if min(map(len, scores)) < 2:
        return Estimate(mean, np.nan, np.nan)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(mean, float(low), float(high))
