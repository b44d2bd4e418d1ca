"""Plots of images next to what remains of them as tokens."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.plotting import save_figure
from dhmm_rl.tokens.codec import FieldGroup
from dhmm_rl.tokens.fields import flatten
from dhmm_rl.tokens.images import Codebook, Patches
from dhmm_rl.tokens.tokenizer import Tokenizer

MAX_SHOWN = 6
"""Largest number of observations in the plot."""


def image_parts(tokenizer: Tokenizer) -> list[FieldGroup]:
    """Return the images in a tokenizer's observations that have a codebook."""
    return [part for part in tokenizer.observation_codec.groups if isinstance(part.quantizer, Codebook)]


def save_reconstruction(tokenizer: Tokenizer, observations: Any, path: str | Path) -> None:
    """
    Plot images next to their reconstructions from tokens, with the reconstruction error.

    :param tokenizer: fitted tokenizer
    :param observations: values of the observation space, shape (N, …); the first :data:`MAX_SHOWN` are plotted
    :param path: path of the PNG file
    :raises InputError: when no image has a codebook
    """
    parts = image_parts(tokenizer)
    if not parts:
        raise InputError("the observations hold no image with a codebook: there is nothing to draw")
    values = flatten(tokenizer.observation_space, observations)[:MAX_SHOWN]
    with save_figure(path, (4.5, 2.2 * len(values) * len(parts))) as figure:
        axes = figure.subplots(len(values) * len(parts), 2, squeeze=False)
        for row, (part, value) in enumerate((part, value) for part in parts for value in values):
            codebook, original = part.quantizer, value[part.columns]
            assert isinstance(codebook, Codebook)
            decoded = codebook.decode(codebook.encode(original))
            error = np.sqrt(np.mean((decoded.astype(float) - original) ** 2))
            for side, image, title in ((0, original, "original"), (1, decoded, f"from tokens, off by {error:.1f} of 255")):
                axes[row, side].imshow(_as_pixels(image, codebook.patches), cmap="gray", vmin=0, vmax=255)
                axes[row, side].set_title(title, fontsize=8)
                axes[row, side].axis("off")


def _as_pixels(values: NDArray[Any], patches: Patches) -> NDArray[np.uint8]:
    """Return an image with height, width and three channels. Of stacked gray frames, only the last one is returned."""
    image = values.astype(np.uint8).reshape(patches.shape)
    if patches.channels_first:
        image = np.moveaxis(image, 0, -1)
    return image if image.ndim == 2 or image.shape[-1] == 3 else image[..., -1]
