"""
Checks on the observations of a stream: infinite values are refused, and values that tokens cannot tell apart are reported.

Shapes: F fields of the observation; P of them that have bins or a set of values; ``...`` any leading shape.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.bins import Bins, Floats
from dhmm_rl.tokens.codec import as_index, make_quantizer
from dhmm_rl.tokens.tokenizer import Tokenizer

FAR = 10.0
"""A value is far outside when it is more than this many times the range of all bins beyond their ends."""
WATCHED_STEPS = 512
"""Number of steps after which to judge whether values vary within a small part of one bin."""
SMALL_PART = 0.1
"""Share of a bin's width that counts as a small part."""


class ObservationMonitor:
    """
    Refuses infinite observations, and warns once of each field whose tokens say nothing about its values.

    NaN is refused where observations are encoded.

    :param tokenizer: the tokenizer of the stream
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        fields = [(column, plan) for column, _, plan in tokenizer.observation_codec.fields if plan.binned or plan.values]
        self._plans = [plan for _, plan in fields]
        self._columns = as_index([column for column, _ in fields])
        low = np.array([plan.values[0] if plan.values else plan.low for plan in self._plans])
        high = np.array([plan.values[-1] if plan.values else plan.high for plan in self._plans])
        margin = FAR * np.maximum(high - low, 1e-9)
        self._far_low, self._far_high = low - margin, high + margin
        self._warned: set[str] = set()
        self._steps = 0
        # The lowest and the highest value of each field so far, (P,) each.
        self._lowest: Floats = np.full(len(self._plans), np.inf)
        self._highest: Floats = np.full(len(self._plans), -np.inf)

    def check(self, values: Floats) -> None:
        """
        Check the observations of one step.

        :param values: field values, (..., F)
        :raises InputError: for a field that is infinite
        """
        if not self._plans:
            return
        values = values[..., self._columns].reshape(-1, len(self._plans))
        far = (values < self._far_low) | (values > self._far_high)
        if far.any():  # infinite values are among these
            self._refuse_infinite(values)
            self._warn_of_far(values, far)
        if self._steps < WATCHED_STEPS:
            self._lowest = np.fmin(self._lowest, values.min(axis=0))
            self._highest = np.fmax(self._highest, values.max(axis=0))
        elif self._steps == WATCHED_STEPS:
            self._warn_of_coarse_bins()
        self._steps += 1

    def _refuse_infinite(self, values: Floats) -> None:
        infinite = np.isinf(values)
        if infinite.any():
            row, j = np.argwhere(infinite)[0]
            raise InputError(f"{self._plans[j].name} is {values[row, j]:g}; an agent can learn from finite numbers only")

    def _warn_of_far(self, values: Floats, far: NDArray[np.bool_]) -> None:
        """Warn of fields with values far outside their bins; both arguments are (rows, P)."""
        for j in np.flatnonzero(far.any(axis=0)).tolist():
            if self._plans[j].name not in self._warned:
                value = values[np.argmax(far[:, j]), j]
                self._warn(j, f"was {value:g}, far outside its {self._plans[j]}, and is read as the nearest of them")

    def _warn_of_coarse_bins(self) -> None:
        """Warn of fields that vary, but within so small a part of one bin that their tokens do not show it."""
        for j, plan in enumerate(self._plans):
            lowest, highest = self._lowest[j], self._highest[j]
            if not plan.binned or highest <= lowest:
                continue
            bins = make_quantizer(plan)
            assert isinstance(bins, Bins)
            first, last = np.clip(bins.compand([[lowest], [highest]]), 0, plan.size)[:, 0]
            if last - first < SMALL_PART:
                self._warn(j, f"varies from {lowest:.4g} to {highest:.4g}, which its {plan} do not tell apart")

    def _warn(self, j: int, what: str) -> None:
        name = self._plans[j].name
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"{name} {what}; fit the tokenizer on rollouts or random_observations(env), or set its low and high",
                stacklevel=4,
            )
