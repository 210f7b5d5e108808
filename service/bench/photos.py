"""Photos of the sizes that people send, made of the samples."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from service.bench import pictures

_QUALITY = 90


@dataclass(frozen=True)
class Size:
    """A size of photo; ``grain`` is the deviation of the noise, in grey levels, that makes its file as long as such
    photos' files are: enlarged pictures have no texture of their own.
    """

    name: str
    width: int
    height: int
    grain: float


SIZES = (
    Size("500 x 375", 500, 375, 18.0),
    Size("1920 x 1080", 1920, 1080, 9.0),
    Size("12 megapixels", 4032, 3024, 9.0),
)


def photos(size: Size) -> list[bytes]:
    """The samples as JPEG files of that size, the same ones every time."""
    random = np.random.default_rng(0)
    return [_photo(data, size, random) for data in pictures.read(None)]


def _photo(data: bytes, size: Size, random: np.random.Generator) -> bytes:
    with Image.open(BytesIO(data)) as sample:
        photo = ImageOps.fit(sample.convert("RGB"), (size.width, size.height), Image.Resampling.BICUBIC)
    grain = random.normal(0, size.grain, (size.height, size.width, 1)).astype(np.float32)
    grainy = (np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
