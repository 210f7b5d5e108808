"""Untrusted bytes -> RGB image, within limits."""

import ctypes
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from models.preprocess import Extent, shorter_side, whole
from service import intricacy
from service.coded import Coded, coded
from service.errors import EmptyBody, NotAnImage, ServiceError, TooManyPixels, TruncatedImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of what is read, in the order of trial; JPEG stands for MPO too, and PNG for APNG."""

# Now, because threads that meet an unregistered format would all do it at once.
Image.init()
# `decode` has the limit that counts; Pillow's would warn below it and raise above it.
Image.MAX_IMAGE_PIXELS = None
# Once for the process, because `catch_warnings` is not safe in threads. What Pillow has to say about a
# stranger's odd metadata is of no use to those who run the service.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _silence_libtiff() -> None:
    """It would write what it trips over to standard error, between the lines of the log."""
    with suppress(OSError, AttributeError):  # Pillow may have been built without it, or for a system without /proc
        loaded = re.search(r"/\S*libtiff\S*", Path("/proc/self/maps").read_text())
        if loaded:
            ctypes.CDLL(loaded[0]).TIFFSetErrorHandler(None)


_silence_libtiff()

OVERSAMPLING = 4
"""How many times as large as the model sees it a picture is read at least: twice would be faster, and change more
labels than rounding does (docs/performance.md)."""

MAX_SIDE = 65_535
"""JPEG's own limit. Decoders take their time by the row: 50 million rows of one pixel cost seconds."""

_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|.{4}ftyp(avi[fs]|m[is]f1)",
    re.DOTALL,
)

# Values of EXIF's Orientation, and what sets the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Which of them exchange width and height, and which bring the left column to the right or the top row to the bottom.
_SIDEWAYS = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
}
_TO_THE_RIGHT = {
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}
_TO_THE_BOTTOM = {
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
}

# What 32-bit samples customarily call white: of masks and unit floats, of 8, of 16 and of 32 bits.
_WHITES = (1.0, 255.0, 65535.0, 2.0**32 - 1)


CODED = 3
"""Times the largest picture's pixels that a file may be decoded to: transparency is coded apart, tiles stick out."""

# Bytes that Pillow has for a pixel, by mode; of any other, four.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}


class Reduced(NamedTuple):
    """A picture read at a reduced scale. It fills the ``extent`` of the image: scaled, its sides may end in a pixel.

    ``size`` is the upright picture's own, unreduced: width and height. ``format`` is the file's, as Pillow calls it.
    """

    image: Image.Image
    extent: Extent
    size: tuple[int, int]
    format: str


def decode(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    """The picture that a file holds, as people see it: upright, on white where it is transparent, 8 bits RGB.

    Of several frames it is the first. Safe to call in threads; Pillow decodes without the GIL.

    Args:
        data: a whole file in one of `FORMATS`, whatever it is called.
        max_pixels: limit on width x height as the header states them, checked before anything is decoded.

    Raises:
        EmptyBody: there are no bytes.
        NotAnImage: the bytes are no picture in one of `FORMATS`.
        TooManyPixels: the header promises more than `max_pixels`, or more than `MAX_SIDE` on a side.
        TooIntricate: to read them would take far longer than their pixels do.
        TruncatedImage: they begin as a picture but cannot be read to its end.
    """
    return decode_reduced(data, max_pixels, None).image


def decode_reduced(data: bytes | memoryview, max_pixels: int, at_least: int | None) -> Reduced:
    """The same, where `at_least` so many pixels on the shorter side are enough; None: all of them are wanted.

    A JPEG that has twice as many is decoded to a half, a quarter or an eighth of its size, which saves most of the
    inverse transform. Raises as `decode` does.
    """
    return Opened(data, max_pixels, at_least).read()


class Opened:
    """A file of which the header has been read: it is a picture within the limits, and to read it takes `need_bytes`.

    Both steps raise as `decode` does.
    """

    def __init__(self, data: bytes | memoryview, max_pixels: int, at_least: int | None) -> None:
        if not data:
            raise EmptyBody("The picture has no bytes.")
        self._data = data
        with self._speaking_plainly():
            intricacy.check(data)
            self._image = Image.open(intricacy.Reader(data), formats=FORMATS)
            _check_size(self._image.size, max_pixels)
            made = coded(self._image, data)
            _check_coded(made, max_pixels)
            self._size = self._image.size
            self._extent = _reduce(self._image, at_least)
            self.need_bytes = _need_bytes(self._image, made)

    def read(self) -> Reduced:
        """The whole picture."""
        image, extent, (width, height), kind = self._image, self._extent, self._size, self._image.format or ""
        with self._speaking_plainly():
            image.load()
            turn, rgb = _turn(image), _rgb(image)
            if turn is None:
                return Reduced(rgb, extent, (width, height), kind)
            size = (height, width) if turn in _SIDEWAYS else (width, height)
            return Reduced(rgb.transpose(turn), _turned(extent, rgb.size, turn), size, kind)

    @contextmanager
    def _speaking_plainly(self) -> Iterator[None]:
        try:
            yield
        except (ServiceError, MemoryError):
            raise
        except Exception as error:  # Pillow lets out whatever its parsers trip over, struct.error for one
            raise _unreadable(self._data) from error


def _need_bytes(image: Image.Image, made: Coded) -> int:
    """How much memory it takes at most to read an image that has been opened, and to make it upright RGB.

    ``made`` is what a decoder makes of its file.
    """
    if image.has_transparency_data:
        taken = 16  # RGBA, white, both, and RGB
    elif image.mode in ("I", "F"):
        taken = 12  # samples, what is taken of them, and RGB
    else:
        taken = 4 if image.mode == "RGB" else 8  # RGB, and turned
    each = _PIXEL_BYTES.get(image.mode, 4) + taken
    return image.width * image.height * each + made.held_bytes


def _reduce(image: Image.Image, at_least: int | None) -> Extent:
    """Have a JPEG read at the smallest scale that leaves so many pixels; where the picture will be in the image."""
    drafted = None if at_least is None else image.draft(None, (at_least, at_least))
    if drafted is None:
        return whole(image)
    _, (_, _, right, bottom) = drafted
    return 0.0, 0.0, right, bottom


def _turned(extent: Extent, size: tuple[int, int], turn: Image.Transpose) -> Extent:
    """Where an extent that begins in the upper left corner is when its image of that size was turned."""
    _, _, right, bottom = extent
    width, height = size
    if turn in _SIDEWAYS:
        right, bottom, width, height = bottom, right, height, width
    left, top = width - right if turn in _TO_THE_RIGHT else 0.0, height - bottom if turn in _TO_THE_BOTTOM else 0.0
    return left, top, left + right, top + bottom


def enough_for(size: int, crop_pct: float) -> int:
    """Pixels on the shorter side that are enough for a model's crop, for the resize to smooth what scaling left."""
    return OVERSAMPLING * shorter_side(size, crop_pct)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooManyPixels(f"The picture has {width} x {height} pixels; at most {max_pixels:,} are allowed.")
    if max(size) > MAX_SIDE:
        raise TooManyPixels(f"The picture has {width} x {height} pixels; at most {MAX_SIDE:,} on a side are allowed.")
    if width < 1 or height < 1:
        raise NotAnImage("The picture has no pixels.")


def _check_coded(made: Coded, max_pixels: int) -> None:
    if made.pixels > CODED * max_pixels:
        raise TooManyPixels(
            f"To show the picture {made.pixels:,} pixels are decoded, in tiles or frames larger than itself; "
            f"at most {CODED * max_pixels:,} are allowed."
        )


def _unreadable(data: bytes | memoryview) -> ServiceError:
    if _SIGNATURE.match(data):
        return TruncatedImage("The picture is cut short or damaged; was it uploaded to its end?")
    return NotAnImage(f"The data is not a picture that can be read; send one of {', '.join(FORMATS)}.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF is common, and no reason to refuse a good picture
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_uint16(image)
    if image.mode in ("I", "F"):
        return _from_32_bits(np.array(image, np.float32))
    if image.has_transparency_data:
        return _on_white(image if image.mode == "RGBA" else image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _from_uint16(image: Image.Image) -> Image.Image:
    samples: NDArray[np.uint16] = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")  # of a PNG: one value among the 65536
    if transparent is not None:
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _from_32_bits(samples: NDArray[np.float32]) -> Image.Image:
    """Grey of samples [H, W]; no file says which value is white, so it is the smallest customary one."""
    samples[~(np.abs(samples) < 1e30)] = 0  # infinity and NaN, and what would soon be infinite
    black, peak = min(0.0, float(samples.min())), float(samples.max())
    white = next((white for white in _WHITES if peak <= white), peak)
    samples -= black
    samples *= 255 / (white - black)
    return Image.fromarray(samples.round().astype(np.uint8)).convert("RGB")
