"""Labelled pictures to train and evaluate on: shards of encoded pictures, or a folder of images by class."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from models.labels import Label
from models.preprocess import crop

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}

Example = tuple[bytes | Path, int]
"""An encoded picture, or the file it is in, and its class."""


@dataclass(frozen=True)
class Dataset:
    """Decoded pictures [N, 3, S, S] uint8 with their classes [N] int64, both on one device."""

    pictures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at_size(self, size: int) -> "Dataset":
        """The same pictures resized to ``size`` pixels a side, antialiased."""
        if self.pictures.shape[-1] == size:
            return self
        chunks = [_resized(chunk, size) for chunk in self.pictures.split(4096)]
        return Dataset(torch.cat(chunks), self.labels)

    def to(self, device: torch.device) -> "Dataset":
        return Dataset(self.pictures.to(device), self.labels.to(device))

    def split(self, held_out: int, seed: int) -> tuple["Dataset", "Dataset"]:
        """All but ``held_out`` pictures drawn by ``seed``, and those."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        rest, held = order[held_out:].sort().values, order[:held_out].sort().values
        return self._take(rest), self._take(held)

    def _take(self, indices: Tensor) -> "Dataset":
        return Dataset(self.pictures[indices], self.labels[indices])


def load_dataset(sources: list[Path], size: int, labels: Sequence[Label] | None = None) -> Dataset:
    """Decode every picture of the shards or class folders into memory, cropped to ``size`` pixels a side.

    With ``labels``, folders are classes by their names; without, by their order.

    Raises:
        ValueError: there is no picture, or a folder's class is none of the labels.
    """
    examples = list(iterate_examples(sources) if labels is None else examples_for(labels, sources))
    if not examples:
        raise ValueError(f"no pictures in {', '.join(map(str, sources))}")
    pictures = torch.empty(len(examples), 3, size, size, dtype=torch.uint8)
    for picture, (image, _) in zip(pictures, tqdm(examples, "decoding", unit="picture"), strict=True):
        picture.copy_(torch.from_numpy(crop(read_image(image), size, crop_pct=1.0)).permute(2, 0, 1))
    return Dataset(pictures, torch.tensor([label for _, label in examples]))


def iterate_examples(sources: list[Path]) -> Iterator[Example]:
    """Encoded pictures with their classes. A source is a shard or a folder with one folder a class.

    A shard is an ``.npz`` with ``bytes`` uint8, ``offsets`` int64 [n + 1] and ``labels`` [n]; picture i is
    ``bytes[offsets[i]:offsets[i + 1]]``.
    """
    for source in sources:
        yield from _shard(source) if source.suffix == ".npz" else _folder(source)


def examples_for(labels: Sequence[Label], sources: list[Path]) -> Iterator[Example]:
    """The same for a model with these classes: a folder's are found among them by name or WordNet id.

    Raises:
        ValueError: a folder's class is none of the model's.
    """
    index = {name: place for place, label in enumerate(labels) for name in (label.name, label.wnid) if name}
    for source in sources:
        if not source.is_dir():
            yield from iterate_examples([source])
            continue
        names = folder_classes(source)
        if strangers := [name for name in names if name not in index]:
            raise ValueError(f"{source} has classes that the model has not: {', '.join(strangers)}")
        yield from ((image, index[names[label]]) for image, label in iterate_examples([source]))


def read_image(encoded: bytes | Path) -> Image.Image:
    """An RGB picture as people mean it: upright, and on white where it is transparent."""
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


def _shard(path: Path) -> Iterator[tuple[bytes, int]]:
    with np.load(path) as shard:
        data, offsets, labels = shard["bytes"], shard["offsets"], shard["labels"]
    for start, end, label in zip(offsets[:-1], offsets[1:], labels, strict=True):
        yield data[start:end].tobytes(), int(label)


def _folder(path: Path) -> Iterator[tuple[Path, int]]:
    for label, name in enumerate(folder_classes(path)):
        for file in sorted((path / name).rglob("*")):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                yield file, label


def folder_classes(path: Path) -> list[str]:
    """The classes of a folder with one folder a class, in index order."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def class_names(sources: list[Path]) -> list[str] | None:
    """The classes of the folders among the sources, in index order; None where there are only shards.

    Raises:
        ValueError: the folders have different classes.
    """
    namings = [folder_classes(source) for source in sources if source.is_dir()]
    if any(naming != namings[0] for naming in namings):
        raise ValueError(f"the folders have different classes: {', '.join(map(str, sources))}")
    return namings[0] if namings else None


def _resized(pictures: Tensor, size: int) -> Tensor:
    resized = F.interpolate(pictures.float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
