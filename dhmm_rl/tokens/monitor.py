"""Checks on what a stream reads: numbers that are not finite, and values that tokens cannot tell apart."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.codec import make_quantizer
from dhmm_rl.tokens.fields import flatten
from dhmm_rl.tokens.tokenizer import Tokenizer

FAR = 10.0
"""A value is far outside when it lies more than this many times the range of all bins beyond their ends."""
WATCHED_STEPS = 512
"""Whether values vary within a small part of one bin is judged after this many steps."""
SMALL_PART = 0.1
"""... which is this part of the bin's width."""


class ObservationMonitor:
    """
    Refuses observations that are infinite, and warns once of fields whose tokens say nothing about their values.

    NaN is refused where observations are encoded.

    :param tokenizer: of the stream
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.space = tokenizer.observation_space
        codec = tokenizer.observation_codec
        fields = [(column, plan) for column, _, plan in codec.fields if plan.binned or plan.values]
        self.columns = np.array([column for column, _ in fields], dtype=np.int64)
        self.plans = [plan for _, plan in fields]
        self.low = np.array([plan.values[0] if plan.values else plan.low for plan in self.plans])
        self.high = np.array([plan.values[-1] if plan.values else plan.high for plan in self.plans])
        room = FAR * np.maximum(self.high - self.low, 1e-9)
        self._far_low, self._far_high = self.low - room, self.high + room
        self._told: set[str] = set()
        self._steps = 0
        self._least, self._most = np.full((2, len(self.plans)), [[np.inf], [-np.inf]])

    def check(self, observation: Any) -> None:
        """
        See whether observations can be read.

        :param observation: values of the observation space, with any leading shape
        :raises InputError: naming a field that is infinite
        """
        if not self.plans:
            return
        values = flatten(self.space, observation)[..., self.columns].reshape(-1, len(self.plans))
        if values.dtype.kind == "f" and np.isinf(values).any():
            row, j = np.argwhere(np.isinf(values))[0]
            raise InputError(f"{self.plans[j].name} is {values[row, j]:g}; an agent can learn from finite numbers only")
        far = (values < self._far_low) | (values > self._far_high)
        if far.any():
            self._warn_of_far(values, far)
        if self._steps < WATCHED_STEPS:
            self._least, self._most = np.fmin(self._least, values.min(axis=0)), np.fmax(self._most, values.max(axis=0))
        elif self._steps == WATCHED_STEPS:
            self._warn_of_coarse()
        self._steps += 1

    def _warn_of_far(self, values: NDArray[Any], far: NDArray[np.bool_]) -> None:
        for j in np.flatnonzero(far.any(axis=0)).tolist():
            if self.plans[j].name not in self._told:
                value = values[np.argmax(far[:, j]), j]
                self._warn(j, f"was {value:g}, far outside its {self.plans[j]}, and is read as the nearest of them")

    def _warn_of_coarse(self) -> None:
        """Of fields that vary, but within so small a part of one bin that their tokens do not show it."""
        for j, plan in enumerate(self.plans):
            if not plan.binned or self._most[j] <= self._least[j]:
                continue
            bins: Any = make_quantizer(plan)
            first, last = np.clip(bins.compand([[self._least[j]], [self._most[j]]]), 0, plan.size)[:, 0]
            if last - first < SMALL_PART:
                self._warn(j, f"varies from {self._least[j]:.4g} to {self._most[j]:.4g}, which its {plan} do not tell apart")

    def _warn(self, j: int, what: str) -> None:
        name = self.plans[j].name
        if name not in self._told:
            self._told.add(name)
            warnings.warn(
                f"{name} {what}; fit the tokenizer on rollouts or random_observations(env), or set its low and high",
                stacklevel=4,
            )
