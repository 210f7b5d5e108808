"""Labelled pictures to train and evaluate on: shards of encoded pictures, or a folder of images by class."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from models.preprocess import crop

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


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


def load_dataset(sources: list[Path], size: int) -> Dataset:
    """Decode every picture of the shards or class folders into memory, cropped to ``size`` pixels a side.

    Raises:
        ValueError: there is no picture.
    """
    examples = list(iterate_examples(sources))
    if not examples:
        raise ValueError(f"no pictures in {', '.join(map(str, sources))}")
    pictures = torch.empty(len(examples), 3, size, size, dtype=torch.uint8)
    for picture, (image, _) in zip(pictures, tqdm(examples, "decoding", unit="picture"), strict=True):
        picture.copy_(torch.from_numpy(crop(read_image(image), size, crop_pct=1.0)).permute(2, 0, 1))
    return Dataset(pictures, torch.tensor([label for _, label in examples]))


def iterate_examples(sources: list[Path]) -> Iterator[tuple[bytes | Path, int]]:
    """Encoded pictures with their classes. A source is a shard or a folder with one folder a class.

    A shard is an ``.npz`` with ``bytes`` uint8, ``offsets`` int64 [n + 1] and ``labels`` [n]; picture i is
    ``bytes[offsets[i]:offsets[i + 1]]``.
    """
    for source in sources:
        yield from _shard(source) if source.suffix == ".npz" else _folder(source)


def read_image(encoded: bytes | Path) -> Image.Image:
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        return image.convert("RGB")


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
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def _resized(pictures: Tensor, size: int) -> Tensor:
    resized = F.interpolate(pictures.float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
