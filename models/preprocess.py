"""RGB image -> uint8 crop, exactly as the published accuracies were measured.

The reference is timm's evaluation transform, that is torchvision's `Resize` and `CenterCrop`: the shorter
side to `floor(size / crop_pct)`, bicubic and antialiased, then the middle `size` x `size` pixels, black where
there are none. Normalisation is not done here: it happens on the device, where it costs nothing.

Where exactness to the last grey level does not matter, only what is kept is resized: that is a third faster.
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
Extent = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in pixels and parts of them."""


class _Axis(NamedTuple):
    """One axis of the crop: the `length` resized pixels from `start` land at `offset` in the output."""

    start: int
    length: int
    offset: int


def crop(
    image: Image.Image,
    size: int,
    crop_pct: float,
    out: NDArray[np.uint8] | None = None,
    *,
    within: Extent | None = None,
) -> NDArray[np.uint8]:
    """The model's view of a picture.

    Args:
        image: an RGB image of any size and aspect.
        size: side of the crop, in pixels.
        crop_pct: the part of the resized shorter side that is kept; above 1 the crop has a black border.
        out: uint8 [size, size, 3] to write into, such as a slot of shared memory.
        within: where in the image the picture is, of one that was read at a reduced scale. The crop is then made the
            fast way: a grey level may differ here and there. Without it, it is bit for bit the reference.

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
    extent = within or whole(image)
    resized_size = _resized_size((extent[2] - extent[0], extent[3] - extent[1]), shorter_side(size, crop_pct))
    x, y = (_center(length, size) for length in resized_size)
    kept = (x.start, y.start, x.start + x.length, y.start + y.length)
    if (x.length, y.length) != (size, size):
        out.fill(0)
    resized = np.asarray(_resize(image, extent, resized_size, kept, exact=within is None))
    out[y.offset : y.offset + y.length, x.offset : x.offset + x.length] = resized
    return out


def whole(image: Image.Image) -> Extent:
    """The extent of all of an image."""
    return 0.0, 0.0, float(image.width), float(image.height)


def region(image_size: tuple[int, int], size: int, crop_pct: float) -> Extent:
    """The part of a picture that a model sees, as fractions of its width and height.

    Below 0 and above 1 there is a border.
    """
    width, height = _resized_size(image_size, shorter_side(size, crop_pct))
    x, y = _center(width, size), _center(height, size)
    left, top = (x.start - x.offset) / width, (y.start - y.offset) / height
    return left, top, left + size / width, top + size / height


def shorter_side(size: int, crop_pct: float) -> int:
    """What the shorter side of a picture is resized to, before a crop of `size` is cut out of it."""
    return math.floor(size / crop_pct)


def _resized_size(image_size: tuple[float, float], shorter: int) -> tuple[int, int]:
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


def _resize(image: Image.Image, extent: Extent, resized_size: tuple[int, int], kept: _Box, exact: bool) -> Image.Image:
    """The pixels `kept` of what is in the `extent`, resized to `resized_size`."""
    is_strip = max(image.size) > _STRIP_ASPECT * min(image.size)
    if exact and not is_strip:
        # The whole, not only its box: Pillow's boxes are float32, which moves a grey level here and there.
        return image.resize(resized_size, Image.Resampling.BICUBIC).crop(kept)
    size, source = (kept[2] - kept[0], kept[3] - kept[1]), _source(extent, resized_size, kept)
    if is_strip:
        image, source = _cut(image, source, size)
    return image.resize(size, Image.Resampling.BICUBIC, box=source)


def _source(extent: Extent, resized_size: tuple[int, int], kept: _Box) -> Extent:
    """Where the pixels `kept` of the resized picture come from."""
    left, top, right, bottom = extent
    x_scale, y_scale = (right - left) / resized_size[0], (bottom - top) / resized_size[1]
    return (
        left + kept[0] * x_scale,
        top + kept[1] * y_scale,
        min(left + kept[2] * x_scale, right),  # not a rounding error beyond it
        min(top + kept[3] * y_scale, bottom),
    )


def _cut(image: Image.Image, source: Extent, size: tuple[int, int]) -> tuple[Image.Image, Extent]:
    """The part of the image that matters for a resize of `source` to `size`, and where in it `source` is then."""
    left, top, right, bottom = source
    scale = max((right - left) / size[0], (bottom - top) / size[1], 1)
    margin = math.ceil(_BICUBIC_RADIUS * scale) + 1  # as far as the filter reads
    cut = (
        max(0, math.floor(left) - margin),
        max(0, math.floor(top) - margin),
        min(image.width, math.ceil(right) + margin),
        min(image.height, math.ceil(bottom) + margin),
    )
    return image.crop(cut), (left - cut[0], top - cut[1], right - cut[0], bottom - cut[1])
