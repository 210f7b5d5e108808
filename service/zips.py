"""Zips -> the files in them, one after the other, in little memory; nothing is extracted to disk."""

import struct
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from service.archives import CHUNK_BYTES, Chunks, Entry, Limits, hidden
from service.errors import (
    InsufficientStorage,
    MalformedBody,
    NotAnImage,
    ServiceError,
    TooManyPictures,
    TruncatedImage,
)
from service.spool import no_room, write_whole
from service.threads import in_thread

ZIP_ENTRIES = 3
ZIP_DIRECTORY_BYTES = 512
"""So much there may be for each picture that is allowed, to leave room for folders and dotfiles."""
ZIP_EXTRA_BYTES = 4096
"""Of an entry: ZipFile takes the square of its length to read it. It has times, owners and sizes, some dozen bytes."""

# what ZipFile lets out of what it trips over
_ZIP_ERRORS = (BadZipFile, EOFError, NotImplementedError, OSError, OverflowError, ValueError, struct.error, zlib.error)
_ZIP_ENTRY = b"PK\1\2"


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
            info for info in archive.infolist() if not info.filename.endswith("/") and not hidden(info.filename)
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
