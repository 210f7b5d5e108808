"""Small labelled pictures, made here: shards, and folders by class."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "blue", "green")


def picture(label: int, seed: int, size: int = 32) -> Image.Image:
    """Noise with a disc of the class's colour somewhere in it."""
    random = np.random.default_rng([label, seed])
    image = Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8))
    left, top = random.integers(0, size // 2, 2).tolist()
    image.paste(COLOURS[label], (left, top, left + size // 2, top + size // 2))
    return image


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def write_shard(path: Path, encoded: Sequence[bytes], labels: Sequence[int]) -> Path:
    offsets = np.cumsum([0, *map(len, encoded)])
    np.savez(path, bytes=np.frombuffer(b"".join(encoded), np.uint8), offsets=offsets, labels=np.array(labels, np.uint8))
    return path


def write_folder(path: Path, encoded: Sequence[bytes], labels: Sequence[int], names: Sequence[str]) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(encoded, labels, strict=True)):
        (path / names[label] / f"{number:03}.jpg").write_bytes(image)
    return path
