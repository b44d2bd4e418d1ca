"""
Images as patches; each patch is one token, the nearest code of a codebook.

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

DEFAULT_CODES = 256
"""Default number of codes of a codebook."""
DEFAULT_PATCHES = 64
"""Approximate number of patches that an image is cut into by default."""
FITTED_PATCHES = 20_000
"""Largest number of different patches that a codebook is fitted on."""
ENCODED_NUMBERS = 2**19
"""Approximate number of bytes of images that are encoded at once, which limits the memory that large batches need."""


@dataclass(frozen=True, eq=False)
class Patches:
    """
    The cutting of an image into square patches, row by row. Where a patch extends past the image, the edge is repeated.

    :param shape: shape of the image: (H, W), (H, W, channels) or (channels, H, W)
    :param side: side of a patch in pixels, p
    """

    shape: tuple[int, ...]
    side: int

    @classmethod
    def of(cls, shape: tuple[int, ...], side: int | None = None) -> "Patches":
        """Make patches of a given side; by default, of one that gives about :data:`DEFAULT_PATCHES` patches."""
        height, width = sorted(shape)[-2:]
        return cls(shape, side or math.ceil(math.sqrt(height * width / DEFAULT_PATCHES)))

    @property
    def channels_first(self) -> bool:
        """Whether the first of three dimensions is that of the channels."""
        return len(self.shape) == 3 and self.shape[0] < self.shape[2]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Height, width and number of channels."""
        if len(self.shape) == 2:
            return (*self.shape, 1)
        return (*self.shape[1:], self.shape[0]) if self.channels_first else self.shape  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """Number of patches in a column."""
        return math.ceil(self.sizes[0] / self.side)

    @property
    def columns(self) -> int:
        """Number of patches in a row."""
        return math.ceil(self.sizes[1] / self.side)

    @property
    def names(self) -> list[str]:
        """Rows and columns of each patch, such as ``[0:12,72:84]``, (P,)."""
        height, width, _ = self.sizes
        corners = np.ndindex(self.rows, self.columns)
        origins = [(row * self.side, column * self.side) for row, column in corners]
        return [f"[{y}:{min(y + self.side, height)},{x}:{min(x + self.side, width)}]" for y, x in origins]

    def cut(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Cut images (..., H · W · channels) into patches (..., P, d)."""
        height, width, channels = self.sizes
        lead = values.shape[:-1]
        images = np.asarray(values, dtype=np.uint8).reshape(-1, *self.shape)
        if self.channels_first:
            images = np.moveaxis(images, 1, -1)
        images = images.reshape(-1, height, width, channels)
        # Repeat the lower and right edges until whole patches cover the image, then split both sides into patches and pixels.
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
    The quantizer of an image: each patch becomes the number of the nearest code.

    :param patches: cutting of the images
    :param codes: patches that stand for all others, (K, d)
    """

    patches: Patches
    codes: NDArray[np.uint8]

    def encode(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Return the nearest code of each patch, (..., P), of images (..., H · W · channels)."""
        images = values.reshape(-1, values.shape[-1])
        nearest = np.empty((len(images), self.patches.rows * self.patches.columns), dtype=np.int64)
        block = max(1, ENCODED_NUMBERS // max(images.shape[-1], 1))
        for first in range(0, len(images), block):
            cut = self.patches.cut(images[first : first + block]).astype(np.float32)
            # (|x - c|² - |x|²) / 2: the nearest code is the same without |x|², which is the same for all codes.
            distances = self._half_squares - cut.reshape(-1, cut.shape[-1]) @ self._transposed
            nearest[first : first + block] = distances.argmin(axis=-1).reshape(cut.shape[:-1])
        return nearest.reshape(*values.shape[:-1], nearest.shape[-1])

    def decode(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the images (..., H · W · channels) of codes (..., P)."""
        return self.patches.paste(self.codes[codes])

    @cached_property
    def _transposed(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.codes.T, dtype=np.float32)

    @cached_property
    def _half_squares(self) -> NDArray[np.float32]:
        halved: NDArray[np.float32] = np.square(self._transposed).sum(axis=0) * np.float32(0.5)
        return halved


def fit_codebook(patches: Patches, values: NDArray[Any], count: int = DEFAULT_CODES, seed: int = 0) -> NDArray[np.uint8]:
    """
    Fit the codes of a codebook.

    If the images have at most ``count`` different patches, these are the codes. Otherwise the codes are the centers of k-means.
    Each different patch counts once, however often it occurs: a large background must not take codes from what is in front.

    :param patches: cutting of the images
    :param values: images, (N, H · W · channels)
    :param count: largest number of codes
    :param seed: seed of the sampling of patches and of k-means
    :return: codes, (K, d)
    :raises InputError: if scikit-learn is required but not installed
    """
    rng = np.random.default_rng(seed)
    cut = patches.cut(values)
    flat = cut.reshape(-1, cut.shape[-1])
    # Finding the different patches sorts them, so draw some of very many first.
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
    # Centers are rounded to bytes, after which some may be equal.
    means = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=2048, max_iter=20)
    centers = means.fit(different.astype(np.float32)).cluster_centers_
    return np.unique(np.rint(centers).clip(0, 255).astype(np.uint8), axis=0)


def codes_to_text(codes: NDArray[np.uint8]) -> str:
    """Return codes as a text for JSON: compressed, in base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(codes).tobytes(), 9)).decode()


def codes_from_text(text: str, size: int) -> NDArray[np.uint8]:
    """
    Invert :func:`codes_to_text`.

    :param text: result of :func:`codes_to_text`
    :param size: number of bytes of a code, d
    """
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(-1, size)
