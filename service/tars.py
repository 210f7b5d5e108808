"""Tars -> the files in them, as they come, in little memory; nothing is extracted to disk."""

import re
import tarfile
import zlib
from collections.abc import AsyncGenerator

from service.archives import CHUNK_BYTES, Chunks, Entry, Limits, hidden, limited
from service.errors import MalformedBody, TooManyPictures
from service.threads import in_thread

LONGEST_NAME_BYTES = 1 << 16
"""Of a file's name and what else stands in a tar before the file itself."""
TAR_MEMBERS = 8
"""So many there may be for each picture that is allowed, to leave room for folders, dotfiles and what stands before."""

_GZIP = b"\x1f\x8b"
_BLOCK = 512
_PREFACES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_WITHOUT_CONTENT = (  # whatever their header says of a size
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_POSIX_PATH = re.compile(rb"^\d+ path=(.*)$", re.MULTILINE)


async def tar_entries(chunks: Chunks, limits: Limits) -> AsyncGenerator[Entry, None]:
    """The files of a tar that may be gzipped, as they come.

    ``tarfile`` reads headers of any length into memory and keeps all of them, so it only takes apart single ones here.

    Raises:
        MalformedBody: it is no tar, or is cut short; the files before have come.
        TooManyPictures: it is far too long, in members of any kind.
        TooManyBytes: more comes out than ``limits`` allow.
    """
    stream = _Stream(chunks)
    if await stream.peek(len(_GZIP)) == _GZIP:
        stream = _Stream(limited(_gunzip(stream.rest()), limits))
    long_name, members = "", 0
    while (header := await stream.read(_BLOCK)).strip(b"\0"):
        member, members = _tar_member(header), members + 1
        if members > limits.pictures * TAR_MEMBERS:
            raise TooManyPictures("The tar holds far more than so many pictures as are allowed.")
        if member.type in _PREFACES:
            preface = await _tar_content(stream, member, LONGEST_NAME_BYTES)
            long_name = _long_name(member.type, preface) or long_name
            continue
        name, long_name = long_name or member.name, ""
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not hidden(name):
            content = await _tar_content(stream, member, limits.picture_bytes)
            yield Entry(name, limits.picture_too_large if content is None else content)
        elif member.type not in _WITHOUT_CONTENT:
            await _tar_content(stream, member, 0)
    async for _ in stream.rest():  # what follows the end is padding
        pass


class _Stream:
    """Chunks, read by counts of bytes."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._held = bytearray()

    async def peek(self, count: int) -> bytes:
        """The next so many bytes, fewer at the end, which stay there."""
        while len(self._held) < count and (chunk := await anext(self._chunks, None)) is not None:
            self._held += chunk
        return bytes(memoryview(self._held)[:count])

    async def read(self, count: int) -> bytes:
        """The next so many bytes, fewer at the end."""
        taken = await self.peek(count)
        del self._held[: len(taken)]
        return taken

    async def rest(self) -> Chunks:
        """All that follows."""
        yield bytes(self._held)
        self._held.clear()
        async for chunk in self._chunks:
            yield chunk


async def _gunzip(packed: Chunks) -> Chunks:
    """What comes out, in pieces of limited size however well it was packed."""
    inflate = zlib.decompressobj(wbits=31)
    try:
        async for chunk in packed:
            while chunk:
                if inflate.eof:  # another gzip may follow, or padding
                    if not (chunk := chunk.lstrip(b"\0")):
                        break
                    inflate = zlib.decompressobj(wbits=31)
                yield await in_thread(None, inflate.decompress, chunk, CHUNK_BYTES)
                chunk = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    except zlib.error as error:
        raise MalformedBody("The gzip cannot be read.") from error
    if not inflate.eof:
        raise MalformedBody("The gzip is cut short.")


def _tar_member(header: bytes) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except tarfile.HeaderError as error:
        raise MalformedBody("The tar cannot be read, or not any further.") from error
    if member.size < 0:
        raise MalformedBody("The tar cannot be read any further: a file has a size below 0.")
    return member


async def _tar_content(stream: _Stream, member: tarfile.TarInfo, most: int) -> bytes | None:
    """A member's content, or None if it is longer than that; in either case the stream is behind it afterwards."""
    padded = -(-member.size // _BLOCK) * _BLOCK
    if member.size <= most:
        content = await stream.read(padded)
        _check_whole(len(content), member.size)
        return content[: member.size]
    skipped = 0
    while skipped < padded and (chunk := await stream.read(min(padded - skipped, CHUNK_BYTES))):
        skipped += len(chunk)
    _check_whole(skipped, member.size)
    return None


def _check_whole(got: int, size: int) -> None:
    if got < size:
        raise MalformedBody("The tar is cut short.")


def _long_name(kind: bytes, preface: bytes | None) -> str:
    """The next file's name, if that is what the preface tells because it did not fit into a header."""
    if preface is None:
        raise MalformedBody("The tar cannot be read any further: what stands before a file is too long.")
    if kind == tarfile.GNUTYPE_LONGNAME:
        return preface.rstrip(b"\0").decode(errors="replace")
    path = _POSIX_PATH.search(preface) if kind == tarfile.XHDTYPE else None
    return path[1].decode(errors="replace") if path else ""
