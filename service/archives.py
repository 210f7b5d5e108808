"""Archives -> the files in them: what all kinds of them have in common."""

from collections.abc import AsyncIterator
from typing import NamedTuple

from service.errors import ServiceError, TooManyBytes

Chunks = AsyncIterator[bytes]

CHUNK_BYTES = 1 << 16


class Limits(NamedTuple):
    """How much may be sent at once. ``total_bytes`` is for what is sent, and for what comes out of it."""

    picture_bytes: int
    total_bytes: int
    pictures: int

    def check_total(self, size: int) -> None:
        """Raise TooManyBytes if all together have more than they may."""
        if size > self.total_bytes:
            raise TooManyBytes(f"At once {self.total_bytes:,} bytes are allowed, both as sent and as unpacked.")

    @property
    def picture_too_large(self) -> TooManyBytes:
        """What is said of a picture that is."""
        return TooManyBytes(f"The picture has more than the {self.picture_bytes:,} bytes that are allowed.")


class Entry(NamedTuple):
    """One file of many, and what it is called; or why it cannot be read, while the others can."""

    name: str | None
    content: bytes | ServiceError


async def limited(chunks: Chunks, limits: Limits) -> Chunks:
    """The same chunks; raise TooManyBytes as soon as they are more than they may be."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        limits.check_total(size)
        yield chunk


def hidden(name: str) -> bool:
    """Whether it is a dotfile, or what macOS adds to archives, or in a folder of such."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
