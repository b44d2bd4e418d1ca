"""
Quantization of real fields, all of them in one call.

Shapes: F real fields; ``...`` any leading shape (time, environments).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Bins:
    """
    Uniform bins between two bounds, for F real fields at once.

    A field without bounds is binned uniformly in the domain of ``asinh((x - origin) / scale)``: linear near its origin,
    logarithmic far away, so that distant values still fall into different bins. The origin is 0, or the one bound there is.

    :param counts: number of bins, (F,)
    :param low: lower edge of the first bin, in the field's own unit, (F,)
    :param high: upper edge of the last bin, in the field's own unit, (F,)
    :param scale: where ``asinh`` bends, in the field's own unit; infinite for a field that is binned linearly, (F,)
    :param origin: where ``asinh`` is 0, in the field's own unit, (F,)
    """

    counts: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    scale: NDArray[np.float64]
    origin: NDArray[np.float64]

    @classmethod
    def of(
        cls, counts: ArrayLike, low: ArrayLike, high: ArrayLike, scale: ArrayLike = np.inf, origin: ArrayLike = 0.0
    ) -> "Bins":
        """Build from anything that broadcasts to (F,)."""
        sizes, *others = np.broadcast_arrays(*np.atleast_1d(counts, low, high, scale, origin))
        return cls(sizes.astype(np.int64), *(other.astype(np.float64) for other in others))

    @cached_property
    def linear(self) -> NDArray[np.bool_]:
        """Which fields are binned linearly, (F,)."""
        return np.isinf(self.scale)

    @cached_property
    def companded_low(self) -> Floats:
        """The lower edge of the first bin in the companded domain, (F,)."""
        return self._compand(self.low)

    @cached_property
    def width(self) -> Floats:
        """The width of a bin in the companded domain, (F,)."""
        return (self._compand(self.high) - self.companded_low) / self.counts

    def compand(self, values: ArrayLike) -> Floats:
        """Map values (..., F) to where bins are uniform, measured in bins: 0 is the low edge, ``counts`` the high one."""
        return (self._compand(np.asarray(values, dtype=np.float64)) - self.companded_low) / self.width

    def expand(self, companded: ArrayLike) -> Floats:
        """Invert :meth:`compand`."""
        bent = np.asarray(companded) * self.width + self.companded_low
        if self._all_linear:
            return bent
        curved = self._finite_scale * np.sinh(np.where(self.linear, 0.0, bent)) + self.origin
        return np.where(self.linear, bent, curved)

    def encode(self, values: ArrayLike, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """
        The bin of every value, 0 to ``counts - 1``; values outside the bounds go to the nearest end.

        :param values: (..., F)
        :param rng: when given, bins are dithered: noise uniform over one full bin width is added in the companded domain
            before rounding, so that the mean of the decoded values is the value itself, whatever the value (Schuchman
            1964; half a width would leave a bias).
        :return: bins, (..., F)
        """
        companded = self.compand(values)
        if rng is not None:
            companded = companded + rng.uniform(-0.5, 0.5, size=companded.shape)
        return np.clip(np.floor(companded), 0, self.counts - 1).astype(np.int64)

    def decode(self, bins: ArrayLike) -> Floats:
        """The center of every bin, (..., F), in the field's own unit."""
        return self.expand(np.asarray(bins) + 0.5)

    def outside(self, values: Floats) -> NDArray[np.bool_]:
        """Which values (..., F) lie beyond the ends."""
        return (values < self.low) | (values > self.high)

    @cached_property
    def _all_linear(self) -> bool:
        return bool(self.linear.all())

    @cached_property
    def _finite_scale(self) -> Floats:
        return np.where(self.linear, 1.0, self.scale)

    def _compand(self, values: Floats) -> Floats:
        if self._all_linear:
            return values
        curved = np.arcsinh((values - self.origin) / self._finite_scale)
        return curved if not self.linear.any() else np.where(self.linear, values, curved)
