"""
Images as patches, each patch one token of a codebook.

Shapes: P patches of an image, each of d bytes (p × p pixels and their channels); K codes; ``...`` any leading shape.
"""

import base64
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError, install_command

CODES = 256
"""Codes of a codebook, where there are no settings."""
PATCHES = 64
"""About so many patches an image is cut into, where there are no settings."""
FITTED_PATCHES = 20_000
"""A codebook is fitted on so many different patches at most."""
ENCODED_NUMBERS = 2**19
"""Images are encoded in blocks of about this many bytes, so that large batches need little memory."""


@dataclass(frozen=True, eq=False)
class Patches:
    """
    How an image is cut: row by row, its right and lower edges repeated where a patch would stick out.

    :param shape: of the image: (H, W), (H, W, channels) or (channels, H, W)
    :param side: p
    """

    shape: tuple[int, ...]
    side: int

    @classmethod
    def of(cls, shape: tuple[int, ...], side: int | None = None) -> "Patches":
        """With a side that makes about :data:`PATCHES` patches where none is given."""
        height, width = sorted(shape)[-2:]
        return cls(shape, side or math.ceil(math.sqrt(height * width / PATCHES)))

    @property
    def channels_first(self) -> bool:
        """Whether the first of three dimensions counts channels."""
        return len(self.shape) == 3 and self.shape[0] < self.shape[2]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        if len(self.shape) == 2:
            return (*self.shape, 1)
        return (*self.shape[1:], self.shape[0]) if self.channels_first else self.shape  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """Patches in a column."""
        return math.ceil(self.sizes[0] / self.side)

    @property
    def columns(self) -> int:
        """Patches in a row."""
        return math.ceil(self.sizes[1] / self.side)

    @property
    def names(self) -> list[str]:
        """Each patch's rows and columns, like ``[0:12,72:84]``, (P,)."""
        height, width, _ = self.sizes
        corners = np.ndindex(self.rows, self.columns)
        places = [(row * self.side, column * self.side) for row, column in corners]
        return [f"[{y}:{min(y + self.side, height)},{x}:{min(x + self.side, width)}]" for y, x in places]

    def cut(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Images (..., H · W · channels) to patches (..., P, d)."""
        height, width, channels = self.sizes
        lead = values.shape[:-1]
        images = np.asarray(values, dtype=np.uint8).reshape(-1, *self.shape)
        if self.channels_first:
            images = np.moveaxis(images, 1, -1)
        images = images.reshape(-1, height, width, channels)
        below, right = self.rows * self.side - height, self.columns * self.side - width
        images = np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
        grid = images.reshape(-1, self.rows, self.side, self.columns, self.side, channels).swapaxes(2, 3)
        return grid.reshape(*lead, self.rows * self.columns, -1)

    def paste(self, patches: NDArray[Any]) -> NDArray[Any]:
        """Invert :meth:`cut`."""
        height, width, channels = self.sizes
        lead = patches.shape[:-2]
        grid = patches.reshape(-1, self.rows, self.columns, self.side, self.side, channels).swapaxes(2, 3)
        images = grid.reshape(-1, self.rows * self.side, self.columns * self.side, channels)[:, :height, :width]
        if self.channels_first:
            images = np.moveaxis(images, -1, 1)
        return images.reshape(*lead, math.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Codebook:
    """
    The patches that stand for all patches.

    :param patches: how images are cut
    :param codes: (K, d)
    """

    patches: Patches
    codes: NDArray[np.uint8]

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """The nearest code of every patch, (..., P), of images (..., H · W · channels)."""
        images = values.reshape(-1, values.shape[-1])
        nearest = np.empty((len(images), self.patches.rows * self.patches.columns), dtype=np.int64)
        block = max(1, ENCODED_NUMBERS // max(images.shape[-1], 1))
        for first in range(0, len(images), block):
            cut = self.patches.cut(images[first : first + block]).astype(np.float32)
            # |x - c|² without |x|², which is the same for all codes
            distance = self._half_squares - cut.reshape(-1, cut.shape[-1]) @ self._transposed
            nearest[first : first + block] = distance.argmin(axis=-1).reshape(cut.shape[:-1])
        return nearest.reshape(*values.shape[:-1], nearest.shape[-1])

    def decode(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """Images (..., H · W · channels) of codes (..., P)."""
        return self.patches.paste(self.codes[codes])

    @cached_property
    def _transposed(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.codes.T, dtype=np.float32)

    @cached_property
    def _half_squares(self) -> NDArray[np.float32]:
        halved: NDArray[np.float32] = np.square(self._transposed).sum(axis=0) * np.float32(0.5)
        return halved


def fit_codebook(patches: Patches, values: NDArray[Any], count: int = CODES, seed: int = 0) -> NDArray[np.uint8]:
    """
    Codes (K, d) for images (N, H · W · channels): every patch there is where these are no more than ``count``, else k-means.

    A patch counts once, however often it is seen: how much background there is says nothing of what stands before it.

    :param count: K at most
    :raises InputError: when scikit-learn is not installed
    """
    rng = np.random.default_rng(seed)
    seen = patches.cut(values)
    flat = seen.reshape(-1, seen.shape[-1])
    if len(flat) > 4 * FITTED_PATCHES:
        flat = flat[rng.choice(len(flat), 4 * FITTED_PATCHES, replace=False)]
    different = np.unique(flat, axis=0)
    if len(different) <= count:
        return different
    if len(different) > FITTED_PATCHES:
        different = different[rng.choice(len(different), FITTED_PATCHES, replace=False)]
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise InputError(f"a codebook of image patches needs scikit-learn: {install_command('images')}") from error
    means = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=2048, max_iter=20)
    centers = means.fit(different.astype(np.float32)).cluster_centers_
    return np.unique(np.rint(centers).clip(0, 255).astype(np.uint8), axis=0)


def codes_to_text(codes: NDArray[np.uint8]) -> str:
    """Codes for JSON: packed, in letters."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(codes).tobytes(), 9)).decode()


def codes_from_text(text: str, size: int) -> NDArray[np.uint8]:
    """Invert :func:`codes_to_text`; ``size`` is d."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(-1, size)
