"""Whether fast decoding changes what a model says: the same photos, read fast and exactly.

python -m service.bench.agreement PHOTOS_OR_SHARDS... --enlarge 500x375
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

import models
from models.classifier import Classifier
from models.dataset import iterate_examples
from models.preprocess import crop, whole
from service.bench import pictures
from service.images import Reduced, decode, decode_reduced, enough_for
from service.terminal import print_table

PARTS = ("fast crop", "fast decoding and crop")
_MAX_PIXELS = 500_000_000
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Agreement:
    """Of how many pictures the first label is the same, and how far scores are apart (mean over pictures of the
    largest difference, and the largest of all)."""

    pictures: int
    same_top1: int
    mean_difference: float
    largest_difference: float


def compare(classifier: Classifier, photos: Iterable[bytes]) -> dict[str, Agreement]:
    """How each part of fast decoding agrees with exact decoding."""
    exact: list[torch.Tensor] = []
    fast: dict[str, list[torch.Tensor]] = {part: [] for part in PARTS}
    for batch in _batches(photos):
        images = [decode(data, _MAX_PIXELS) for data in batch]
        exact.append(_scores(classifier, [classifier.crop(image) for image in images]))
        unreduced = [Reduced(image, whole(image), image.size, "") for image in images]
        fast["fast crop"].append(_scores(classifier, [_fast_crop(classifier, each) for each in unreduced]))
        enough = enough_for(classifier.image_size, classifier.crop_pct)
        reduced = [decode_reduced(data, _MAX_PIXELS, enough) for data in batch]
        fast["fast decoding and crop"].append(_scores(classifier, [_fast_crop(classifier, each) for each in reduced]))
    return {part: _agreement(torch.cat(exact), torch.cat(scores)) for part, scores in fast.items()}


def _batches(photos: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(photos)
    while batch := list(islice(rest, _BATCH_SIZE)):
        yield batch


def _fast_crop(classifier: Classifier, read: Reduced) -> NDArray[np.uint8]:
    return crop(read.image, classifier.image_size, classifier.crop_pct, within=read.extent)


def _scores(classifier: Classifier, crops: list[NDArray[np.uint8]]) -> torch.Tensor:
    return classifier.scores(torch.from_numpy(np.stack(crops)))


def _agreement(exact: torch.Tensor, fast: torch.Tensor) -> Agreement:
    apart = (exact - fast).abs().amax(dim=1)  # photos
    same = int((exact.argmax(dim=1) == fast.argmax(dim=1)).sum())
    return Agreement(len(exact), same, float(apart.mean()), float(apart.max()))


def _photos(source: Path, limit: int) -> Iterator[bytes]:
    if source.suffix != ".npz":
        return iter(pictures.read(source)[:limit])
    return (image if isinstance(image, bytes) else image.read_bytes() for image, _ in _first(source, limit))


def _first(shard: Path, limit: int) -> Iterator[tuple[bytes | Path, int]]:
    return islice(iterate_examples([shard]), limit)


def enlarged(data: bytes, width: int, height: int) -> bytes:
    """The photo as a JPEG of that size, cut to its aspect."""
    with Image.open(io.BytesIO(data)) as image:
        large = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.bench.agreement", description=__doc__.partition("\n")[0])
    parser.add_argument("sources", nargs="+", type=Path, help="folders of JPEG files, or shards (.npz)")
    parser.add_argument("--model", default="embedded", help="whose answers (embedded)")
    parser.add_argument("--enlarge", metavar="WxH", help="make photos of this size of them first")
    parser.add_argument("--limit", type=int, default=1000, help="of each source (1000)")
    chosen = parser.parse_args()
    photos: Iterator[bytes] = (data for source in chosen.sources for data in _photos(source, chosen.limit))
    if chosen.enlarge:
        width, height = map(int, chosen.enlarge.split("x"))
        photos = (enlarged(data, width, height) for data in photos)
    found = compare(models.load_model(chosen.model), tqdm(photos, "comparing", unit="photo"))
    rows = [
        (
            part,
            f"{each.same_top1} of {each.pictures}",
            f"{each.same_top1 / each.pictures:.2%}",
            f"{each.mean_difference:.4f}",
            f"{each.largest_difference:.3f}",
        )
        for part, each in found.items()
    ]
    titles = ("fast", "same label", "share", "mean difference", "largest")
    print_table(titles, rows, right=set(titles[1:]))


if __name__ == "__main__":
    main()
