"""Where in a picture a label is: what the auxiliary head's maps of patches say, and how to show it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import Extent

# Inferno at equal steps, from black through red to yellow: it rises evenly in brightness, so that it can be read
# without colours (matplotlib's, CC0).
_COLOURS = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39)], np.float32
)
_OPACITY = 0.7


class Patch(NamedTuple):
    """A patch's place in the grid."""

    row: int
    column: int


def loudest(patches: NDArray[np.float32]) -> Patch:
    """The patch of a map [G, G] that speaks loudest: the one that counted."""
    row, column = divmod(int(patches.argmax()), patches.shape[1])
    return Patch(row, column)


def box(patch: Patch, grid_size: int, region: Extent) -> Extent:
    """Where in the picture a patch is, given the ``region`` of the picture that the model sees."""
    left, top, right, bottom = region
    width, height = (right - left) / grid_size, (bottom - top) / grid_size
    x, y = left + patch.column * width, top + patch.row * height
    return x, y, x + width, y + height


def overlay(patches: NDArray[np.float32], size: int) -> Image.Image:
    """A map [G, G] as an RGBA image of ``size`` x ``size`` pixels to lay over the region that the model sees.

    The quietest patch is transparent, the loudest bright.
    """
    quiet, loud = float(patches.min()), float(patches.max())
    heat = (patches - quiet) / max(loud - quiet, 1e-6)
    smooth = Image.fromarray(heat.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(heat, steps, colour) for colour in _COLOURS.T]
    return Image.fromarray(np.stack([*channels, 255 * _OPACITY * heat], axis=-1).round().astype(np.uint8), "RGBA")
