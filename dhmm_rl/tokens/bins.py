"""
Quantisation of real fields, all of them in one call.

Shapes: F real fields; ``...`` any leading shape (time, environments).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]


class Bins(NamedTuple):
    """
    Uniform bins between two bounds, for F real fields at once.

    A field without bounds is binned uniformly in the domain of ``asinh(x / scale)``: linear near zero, logarithmic far
    away, so that distant values still fall into different bins.

    :param counts: number of bins, (F,)
    :param low: lower edge of the first bin, in the field's own unit, (F,)
    :param high: upper edge of the last bin, in the field's own unit, (F,)
    :param scale: where ``asinh`` bends, in the field's own unit; infinite for a field that is binned linearly, (F,)
    """

    counts: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, counts: ArrayLike, low: ArrayLike, high: ArrayLike, scale: ArrayLike = np.inf) -> "Bins":
        """Build from anything that broadcasts to (F,)."""
        sizes, lows, highs, scales = np.broadcast_arrays(*np.atleast_1d(counts, low, high, scale))
        real = np.float64
        return cls(sizes.astype(np.int64), lows.astype(real), highs.astype(real), scales.astype(real))

    def compand(self, values: ArrayLike) -> Floats:
        """Map values (..., F) to where bins are uniform, measured in bins: 0 is the low edge, ``counts`` the high one."""
        companded_low = self._bend(self.low)
        width = (self._bend(self.high) - companded_low) / self.counts
        return (self._bend(np.asarray(values, dtype=np.float64)) - companded_low) / width

    def expand(self, companded: ArrayLike) -> Floats:
        """Invert :meth:`compand`."""
        companded_low = self._bend(self.low)
        width = (self._bend(self.high) - companded_low) / self.counts
        bent = np.asarray(companded) * width + companded_low
        linear = np.isinf(self.scale)
        if linear.all():
            return bent
        scale = np.where(linear, 1.0, self.scale)
        return np.where(linear, bent, scale * np.sinh(np.where(linear, 0.0, bent)))

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
        """The centre of every bin, (..., F), in the field's own unit."""
        return self.expand(np.asarray(bins) + 0.5)

    def _bend(self, values: Floats) -> Floats:
        linear = np.isinf(self.scale)
        if linear.all():
            return values
        return np.where(linear, values, np.arcsinh(values / np.where(linear, 1.0, self.scale)))
