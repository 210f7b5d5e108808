"""Which files are meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mpo", ".apng")
)
"""Of what is a picture in a folder. What is named itself is tried whatever it is called."""


def find(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and the pictures in the folders and below them, in the order of their names.

    Hidden files and folders are left out.
    """
    for path in paths:
        if path.is_dir():
            yield from _below(path)
        else:
            yield path


def _below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            yield from _below(Path(entry))
        elif Path(entry).suffix.lower() in SUFFIXES:
            yield Path(entry)
