"""What a decoder makes of a file beside the picture that it tells of: tiles that stick out, frames that are larger."""

from typing import NamedTuple

from PIL import Image, TiffImagePlugin

from service import avif


class Coded(NamedTuple):
    """Pixels that are decoded for a picture, and how many of them lie beside it in memory at once."""

    pixels: int
    held: int


def coded(image: Image.Image, data: bytes | memoryview) -> Coded:
    """What a file of which the header has been read is decoded to.

    Raises:
        TooIntricate: that cannot be told.
        Exception: whatever trips over a file that does not make sense.
    """
    shown = image.width * image.height
    if image.format == "AVIF":
        pixels = avif.decoded_pixels(data)
        return Coded(pixels, pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiles(image)
    return Coded(shown, shown if image.format == "WEBP" else 0)


def _tiles(image: TiffImagePlugin.TiffImageFile) -> Coded:
    """Of a TIFF, whose tiles may be larger than itself and all lie on the same bytes."""
    width, height = (image.tag_v2.get(tag) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    if width is None and height is None:
        return Coded(image.width * image.height, 0)
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        raise ValueError("a tile without a size")
    columns, rows = -(-image.width // width), -(-image.height // height)
    return Coded(columns * width * rows * height, width * height)
