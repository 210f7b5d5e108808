"""What a decoder makes of a file beside the picture: tiles that stick out, frames that are larger, coefficients."""

from typing import NamedTuple

from PIL import Image, JpegImagePlugin, TiffImagePlugin

from service import avif, jpeg


class Coded(NamedTuple):
    """Pixels that are decoded for a picture, and what of them a decoder holds beside it at once."""

    pixels: int
    held_bytes: int


def coded(image: Image.Image, data: bytes | memoryview) -> Coded:
    """What a file of which the header has been read is decoded to.

    Raises:
        TooIntricate: that cannot be told.
        Exception: whatever trips over a file that does not make sense.
    """
    shown = image.width * image.height
    if image.format == "AVIF":
        pixels = avif.decoded_pixels(data)
        return Coded(pixels, 6 * pixels)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # whose components do not come together is kept as coefficients, at whatever scale it is read
        kept = image.info.get("progressive") or jpeg.first_scan(data) < image.layers
        return Coded(shown, 2 * shown * image.layers if kept else 0)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiles(image)
    return Coded(shown, 12 * shown if image.format == "WEBP" else 0)


def _tiles(image: TiffImagePlugin.TiffImageFile) -> Coded:
    """Of a TIFF, whose tiles may be larger than itself and all lie on the same bytes."""
    width, height = (image.tag_v2.get(tag) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    if width is None and height is None:
        return Coded(image.width * image.height, 0)
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        raise ValueError("a tile without a size")
    columns, rows = -(-image.width // width), -(-image.height // height)
    return Coded(columns * width * rows * height, 8 * width * height)
