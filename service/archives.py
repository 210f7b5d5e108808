"""Archives -> the files in them, one after the other, in little memory; nothing is extracted to disk."""

import re
import struct
import tarfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from service.errors import (
    InsufficientStorage,
    MalformedBody,
    NotAnImage,
    ServiceError,
    TooManyBytes,
    TooManyPictures,
    TruncatedImage,
)
from service.spool import no_room, write_whole
from service.threads import in_thread

Chunks = AsyncIterator[bytes]

CHUNK_BYTES = 1 << 16
LONGEST_NAME_BYTES = 1 << 16
"""Of a file's name and what else stands in a tar before the file itself."""

TAR_MEMBERS = 8
ZIP_ENTRIES = 3
ZIP_DIRECTORY_BYTES = 512
"""So much there may be for each picture that is allowed, to leave room for folders, dotfiles and what stands before."""
ZIP_EXTRA_BYTES = 4096
"""Of an entry: ZipFile takes the square of its length to read it. It has times, owners and sizes, some dozen bytes."""

_GZIP = b"\x1f\x8b"
# what ZipFile lets out of what it trips over
_ZIP_ERRORS = (BadZipFile, EOFError, NotImplementedError, OSError, OverflowError, ValueError, struct.error, zlib.error)
_ZIP_ENTRY = b"PK\1\2"
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
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not _hidden(name):
            content = await _tar_content(stream, member, limits.picture_bytes)
            yield Entry(name, limits.picture_too_large if content is None else content)
        elif member.type not in _WITHOUT_CONTENT:
            await _tar_content(stream, member, 0)
    async for _ in stream.rest():  # what follows the end is padding
        pass


async def zip_entries(chunks: Chunks, limits: Limits) -> AsyncGenerator[Entry, None]:
    """The files of a zip, which is first written to an unnamed file, because its directory stands at its end.

    Raises:
        MalformedBody: it is no zip.
        TooManyPictures: its directory is far too long.
        TooManyBytes: more comes out than ``limits`` allow.
        InsufficientStorage: the file has no room.
    """
    with _unnamed_file() as file:
        async for chunk in chunks:
            await in_thread(None, _keep, file, chunk)
        archive, files = await in_thread(None, _open_zip, _Bounded(file, limits.pictures))
        unpacked = 0
        for info in files:
            content, came = await in_thread(None, _zip_content, archive, info, limits)
            unpacked += came
            limits.check_total(unpacked)
            yield Entry(info.filename, content)


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


def _unnamed_file() -> IO[bytes]:
    with _no_room():
        return TemporaryFile(buffering=0)


def _keep(file: IO[bytes], chunk: bytes) -> None:
    with _no_room():
        write_whole(file, chunk)


@contextmanager
def _no_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise no_room(error, "a zip", InsufficientStorage.example) from error


class _Bounded:
    """A file for ``ZipFile``, which would take a directory of any length into memory at once, and make an object of
    each entry in it, however many the zip's end tells of."""

    def __init__(self, file: IO[bytes], pictures: int) -> None:
        self._pictures = pictures
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable
        self.opened = False

    def read(self, size: int = -1) -> bytes:
        most = CHUNK_BYTES + self._pictures * ZIP_DIRECTORY_BYTES
        if size > most:
            raise TooManyPictures("The zip's directory is longer than that of so many pictures as are allowed.")
        data = self._file.read(size if size >= 0 else most)
        if not self.opened:
            _check_directory(data, self._pictures * ZIP_ENTRIES)
        return data


def _check_directory(data: bytes, most: int) -> None:
    """Walk through the entries that the data begins with, if it does."""
    place = entries = 0
    while data.startswith(_ZIP_ENTRY, place):
        entries += 1
        name, extra, comment = struct.unpack_from("<HHH", data, place + 28)
        if entries > most:
            raise TooManyPictures("The zip's directory has far more entries than pictures are allowed.")
        if extra > ZIP_EXTRA_BYTES:
            raise MalformedBody("The zip's directory cannot be read: what it adds to an entry is too long.")
        place += 46 + name + extra + comment


def _open_zip(file: _Bounded) -> tuple[ZipFile, list[ZipInfo]]:
    """A zip, and those of its entries that are files of people's own."""
    try:
        archive = ZipFile(file)
        file.opened = True
        return archive, [
            info for info in archive.infolist() if not info.filename.endswith("/") and not _hidden(info.filename)
        ]
    except _ZIP_ERRORS as error:
        raise MalformedBody("The zip cannot be read; was it uploaded to its end?") from error


def _zip_content(archive: ZipFile, info: ZipInfo, limits: Limits) -> tuple[bytes | ServiceError, int]:
    """A file, and how many bytes came out, whatever the directory says of its size."""
    # Other methods are rare, and what they give at once cannot be limited.
    if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return NotAnImage("The file is encrypted in the zip, or packed by another method than deflate."), 0
    content = BytesIO()  # gives what it holds without a copy
    try:
        with archive.open(info) as file:
            while content.tell() <= limits.picture_bytes and (piece := file.read(CHUNK_BYTES)):
                content.write(piece)
    except _ZIP_ERRORS:  # before the last piece was given
        return TruncatedImage("The zip is damaged where this file is."), content.tell() + CHUNK_BYTES
    if content.tell() > limits.picture_bytes:
        return limits.picture_too_large, content.tell()
    return content.getvalue(), content.tell()


def _hidden(name: str) -> bool:
    """Whether it is a dotfile, or what macOS adds to archives, or in a folder of such."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
