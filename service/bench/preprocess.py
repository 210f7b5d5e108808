"""`volo bench preprocess`: what HTTP workers do with a photo, on one core."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image

from models.preprocess import Extent, crop
from models.zoo import Model, resolve
from service.bench import machine, report
from service.bench.photos import SIZES, photos
from service.bench.progress import shown
from service.images import decode, decode_reduced, enough_for
from service.options import read_settings
from service.process import INTERRUPTED
from service.terminal import fail, print_table

T = TypeVar("T")

_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One size of photo for one model. Times are CPU milliseconds of one core, for the mean photo."""

    model: str
    crop: int
    photo: str
    mean_bytes: int
    decode_ms: float
    crop_ms: float
    photos_per_s: float


@dataclass(frozen=True)
class View:
    """What a model sees of a photo."""

    model: str
    size: int
    part: float


@dataclass(frozen=True)
class Way:
    """How photos are read: the limit on their pixels, and whether exactly, or as fast as is good enough."""

    max_pixels: int
    exact: bool


def run(arguments: argparse.Namespace) -> int:
    """Measure as told; the exit status."""
    settings = read_settings(arguments)
    try:
        crops = [_crop(name) for name in arguments.names or [settings.model]]
    except (OSError, ValueError) as error:
        fail(str(error), 1)
    way = Way(settings.max_pixels, settings.decode == "exact")
    rows: list[Row] = []
    status = 0
    try:
        with shown() as tell:
            for number, size in enumerate(SIZES):
                tell(size.name, number / len(SIZES))
                files = photos(size)
                rows += [measure(size.name, files, each, way, arguments.seconds) for each in crops]
    except KeyboardInterrupt:
        status = INTERRUPTED
    _print(rows, settings.decode)
    if arguments.json:
        chosen = {"decode": settings.decode, "seconds": arguments.seconds}
        report.write(arguments.json, "preprocess", chosen, {"rows": [asdict(row) for row in rows]})
    return status


def _crop(source: str) -> View:
    found = resolve(source)
    if isinstance(found, Model):
        return View(found.name, found.image_size, found.crop_pct)
    from models import load_model  # with torch: only a checkpoint of one's own must be looked into

    classifier = load_model(source)
    return View(classifier.name, classifier.image_size, classifier.crop_pct)


def measure(photo: str, files: Sequence[bytes], seen: View, way: Way, seconds: float) -> Row:
    """Rounds over all the photos, through what HTTP workers call; the median round."""
    out = np.empty((seen.size, seen.size, 3), np.uint8)
    decoding: list[float] = []
    cropping: list[float] = []
    end_s = time.monotonic() + seconds
    while len(decoding) < _LEAST_ROUNDS or time.monotonic() < end_s:
        decode_s = crop_s = 0.0
        for data in files:
            (image, extent), spent_s = _timed(partial(_read, data, seen, way))
            decode_s += spent_s
            crop_s += _timed(partial(crop, image, seen.size, seen.part, out, within=extent))[1]
        decoding.append(decode_s / len(files))
        cropping.append(crop_s / len(files))
    decode_s, crop_s = statistics.median(decoding), statistics.median(cropping)
    mean_bytes = sum(map(len, files)) // len(files)
    return Row(seen.model, seen.size, photo, mean_bytes, decode_s * 1e3, crop_s * 1e3, 1 / (decode_s + crop_s))


def _read(data: bytes, seen: View, way: Way) -> tuple[Image.Image, Extent | None]:
    if way.exact:
        return decode(data, way.max_pixels), None
    image, extent, *_ = decode_reduced(data, way.max_pixels, enough_for(seen.size, seen.part))
    return image, extent


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and its CPU seconds: those of this thread, whoever else is on the machine."""
    started_s = time.thread_time()
    return work(), time.thread_time() - started_s


def _print(rows: Sequence[Row], decoding: str) -> None:
    print(f"{decoding} decoding on one core of {machine.summary()}\n")
    titles = ("crop for", "pixels", "photo", "file KB", "decode ms", "crop ms", "photos/s")
    cells = [
        (
            row.model,
            str(row.crop),
            row.photo,
            f"{row.mean_bytes / 1e3:.0f}",
            report.milliseconds(row.decode_ms),
            report.milliseconds(row.crop_ms),
            report.rate(row.photos_per_s),
        )
        for row in rows
    ]
    print_table(titles, cells, right=set(titles) - {"crop for", "photo"})
