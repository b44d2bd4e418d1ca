"""
Quantization of real fields, all fields in one call.

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

    A field without bounds is companded: its bins are uniform in the domain of ``asinh((x - origin) / scale)``. This is linear
    near the origin and logarithmic far away, so distant values still fall into different bins. The origin is 0, or the only
    bound of the field.

    :param counts: number of bins of each field, (F,)
    :param low: lower edge of the first bin, in the field's own unit, (F,)
    :param high: upper edge of the last bin, in the field's own unit, (F,)
    :param scale: distance from the origin at which ``asinh`` turns from linear to logarithmic, in the field's own unit;
        infinite for a field that is binned linearly, (F,)
    :param origin: value at which ``asinh`` is 0, in the field's own unit, (F,)
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
        """Build bins from arguments that broadcast to (F,)."""
        sizes, *others = np.broadcast_arrays(*np.atleast_1d(counts, low, high, scale, origin))
        return cls(sizes.astype(np.int64), *(other.astype(np.float64) for other in others))

    @cached_property
    def linear(self) -> NDArray[np.bool_]:
        """True for fields that are binned linearly, (F,)."""
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
        """
        Map values to the companded domain, measured in bins: 0 is the low edge of the first bin, ``counts`` the high edge of
        the last.

        :param values: values in the fields' own units, (..., F)
        :return: positions, (..., F)
        """
        return (self._compand(np.asarray(values, dtype=np.float64)) - self.companded_low) / self.width

    def expand(self, companded: ArrayLike) -> Floats:
        """Invert :meth:`compand`."""
        positions = np.asarray(companded) * self.width + self.companded_low
        if self._all_linear:
            return positions
        # Linear fields get 0 here, since sinh of their values could overflow; their result is not used.
        values = self._finite_scale * np.sinh(np.where(self.linear, 0.0, positions)) + self.origin
        return np.where(self.linear, positions, values)

    def encode(self, values: ArrayLike, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """
        Return the bin of each value. Values outside the bounds go to the first or the last bin.

        :param values: values in the fields' own units, (..., F)
        :param rng: random numbers of the dither; no dither when ``None``. The dither is noise that is uniform over one full bin
            width, added in the companded domain before rounding. The mean of the decoded values is then the value itself,
            whatever the value (Schuchman, "Dither signals and their effect on quantization noise", 1964); noise over half a
            width would leave a bias.
        :return: bins, 0 to ``counts - 1``, (..., F)
        """
        companded = self.compand(values)
        if rng is not None:
            companded = companded + rng.uniform(-0.5, 0.5, size=companded.shape)
        return np.clip(np.floor(companded), 0, self.counts - 1).astype(np.int64)

    def decode(self, bins: ArrayLike) -> Floats:
        """Return the center of each bin (..., F), in the field's own unit."""
        return self.expand(np.asarray(bins) + 0.5)

    def outside(self, values: Floats) -> NDArray[np.bool_]:
        """Return true for values (..., F) below the first bin or above the last."""
        return (values < self.low) | (values > self.high)

    @cached_property
    def _all_linear(self) -> bool:
        return bool(self.linear.all())

    @cached_property
    def _finite_scale(self) -> Floats:
        return np.where(self.linear, 1.0, self.scale)

    def _compand(self, values: Floats) -> Floats:
        """Map values (..., F) to the companded domain; those of linear fields stay as they are."""
        if self._all_linear:
            return values
        companded = np.arcsinh((values - self.origin) / self._finite_scale)
        return companded if not self.linear.any() else np.where(self.linear, values, companded)
