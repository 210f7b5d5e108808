"""Real photographs to send: a folder's, or those that come with the models."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

_SUFFIXES = {".jpg", ".jpeg"}


def read(folder: Path | None) -> list[bytes]:
    """The JPEG files of a folder and of those in it, in the order of their names; the samples without a folder.

    Raises:
        ValueError: there are none.
        OSError: one cannot be read.
    """
    if folder is None:
        with as_file(files("models.data") / "samples") as samples:
            return read(samples)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ValueError(f"{folder} has no JPEG files")
    return [path.read_bytes() for path in found]
