"""Which files are meant, how they are called in results, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from service.errors import ServiceError, TooManyBytes

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mpo", ".apng")
)
"""Of what is a picture in a folder. What is named itself is tried whatever it is called."""

_BYTES_PER_PIXEL = 8
"""16 bits of red, green, blue and opacity, uncompressed."""


def find(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and the pictures in the folders and below them, in the order of their names.

    Hidden files and folders are left out. A folder that cannot be read stands for what is in it.
    """
    for path in paths:
        if path.is_dir():
            yield from _below(path, frozenset())
        else:
            yield path


def name_of(file: Path) -> str:
    """How a file is called in results: its path, with escapes for bytes that are no UTF-8."""
    return os.fsencode(file).decode(errors="backslashreplace")


def read(file: Path, max_pixels: int) -> bytes:
    """What is in a file.

    Raises:
        TooManyBytes: that is more than a picture of so many pixels takes; many of these would fill the memory.
        OSError: it cannot be read.
    """
    max_bytes = max_pixels * _BYTES_PER_PIXEL
    if file.stat().st_size > max_bytes:
        raise TooManyBytes(f"The file has more than the {max_bytes:,} bytes that {max_pixels:,} pixels can take.")
    return file.read_bytes()


def failure(error: ServiceError | OSError) -> dict[str, str]:
    """What results say of a file that could not be read."""
    if isinstance(error, ServiceError):
        return {"error": error.code, "detail": error.detail}
    return {"error": "unreadable_file", "detail": error.strerror or str(error)}


def _below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        status, names = folder.stat(), _names(folder)
    except OSError:
        yield folder
        return
    here = status.st_dev, status.st_ino
    if here in above:  # a link has led back to where we came from
        return
    for name in names:
        if name.endswith("/"):
            yield from _below(folder / name, above | {here})
        else:
            yield folder / name


def _names(folder: Path) -> list[str]:
    """What is to be looked at in a folder, as plain names, because there may be a million; folders end in a slash."""
    with os.scandir(folder) as entries:
        kept = (entry for entry in entries if _can_be_read_to_its_end(entry))
        names = (f"{entry.name}/" if _is_folder(entry) else entry.name for entry in kept)
        return sorted(name for name in names if not name.startswith(".") and _may_hold_a_picture(name))


def _can_be_read_to_its_end(entry: os.DirEntry[str]) -> bool:
    """Whether it is no pipe or device, which might never end. A link that leads nowhere is told of when it is read."""
    try:
        return entry.is_file() or entry.is_dir() or not os.path.exists(entry)
    except OSError:  # a link that leads to itself
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _may_hold_a_picture(name: str) -> bool:
    return name.endswith("/") or os.path.splitext(name)[1].lower() in SUFFIXES
