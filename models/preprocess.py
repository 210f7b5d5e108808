"""RGB image -> uint8 crop, exactly as the published accuracies were measured.

The reference is timm's evaluation transform, that is torchvision's `Resize` and `CenterCrop`: the shorter
side to `floor(size / crop_pct)`, bicubic and antialiased, then the middle `size` x `size` pixels, black where
there are none. Normalisation is not done here: it happens on the device, where it costs nothing.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A longer strip is cut before it is resized: 1 x 50000 pixels would otherwise become 224 x 11 million.
_STRIP_ASPECT = 16
_BICUBIC_RADIUS = 2

_Box = tuple[int, int, int, int]


class _Axis(NamedTuple):
    """One axis of the crop: the `length` resized pixels from `start` land at `offset` in the output."""

    start: int
    length: int
    offset: int


def crop(image: Image.Image, size: int, crop_pct: float, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The model's view of a picture.

    Args:
        image: an RGB image of any size and aspect.
        size: side of the crop, in pixels.
        crop_pct: the part of the resized shorter side that is kept; above 1 the crop has a black border.
        out: uint8 [size, size, 3] to write into, such as a slot of shared memory.

    Returns:
        uint8 [size, size, 3], height x width x RGB: `out` where it was given.

    Raises:
        ValueError: the image is not RGB, or `out` has another shape.
    """
    if image.mode != "RGB":
        raise ValueError(f"crop takes an RGB image, not {image.mode}")
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    if out.shape != (size, size, 3):
        raise ValueError(f"out must have the shape {(size, size, 3)}, not {out.shape}")
    resized_size = _resized_size(image.size, math.floor(size / crop_pct))
    x, y = (_center(length, size) for length in resized_size)
    kept = (x.start, y.start, x.start + x.length, y.start + y.length)
    if (x.length, y.length) != (size, size):
        out.fill(0)
    resized = np.asarray(_resize(image, resized_size, kept))
    out[y.offset : y.offset + y.length, x.offset : x.offset + x.length] = resized
    return out


def _resized_size(image_size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height after torchvision's `Resize(shorter)`."""
    width, height = image_size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _center(length: int, size: int) -> _Axis:
    """The pixels that torchvision's `CenterCrop(size)` keeps of one axis."""
    if length < size:
        return _Axis(start=0, length=length, offset=(size - length) // 2)
    return _Axis(start=round((length - size) / 2.0), length=size, offset=0)


def _resize(image: Image.Image, resized_size: tuple[int, int], kept: _Box) -> Image.Image:
    """The pixels `kept` of the image resized to `resized_size`."""
    if max(image.size) > _STRIP_ASPECT * min(image.size):
        return _resize_strip(image, resized_size, kept)
    # The whole, not only its box: Pillow's boxes are float32, which moves a grey level here and there.
    return image.resize(resized_size, Image.Resampling.BICUBIC).crop(kept)


def _resize_strip(image: Image.Image, resized_size: tuple[int, int], kept: _Box) -> Image.Image:
    """The same but for rounding, in memory of the order of what is kept."""
    x_scale, y_scale = image.width / resized_size[0], image.height / resized_size[1]
    left, top, right, bottom = kept[0] * x_scale, kept[1] * y_scale, kept[2] * x_scale, kept[3] * y_scale
    margin = math.ceil(_BICUBIC_RADIUS * max(x_scale, y_scale, 1)) + 1  # as far as the filter reads
    cut = (
        max(0, math.floor(left) - margin),
        max(0, math.floor(top) - margin),
        min(image.width, math.ceil(right) + margin),
        min(image.height, math.ceil(bottom) + margin),
    )
    return image.crop(cut).resize(
        (kept[2] - kept[0], kept[3] - kept[1]),
        Image.Resampling.BICUBIC,
        box=(left - cut[0], top - cut[1], right - cut[0], bottom - cut[1]),
    )
