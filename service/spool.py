"""What is to be sent waits here until the caller takes it: in memory, and on disk if it is much."""

import asyncio
import errno
from collections.abc import AsyncIterator
from io import BytesIO
from tempfile import TemporaryFile, gettempdir
from types import TracebackType
from typing import IO, Self

from service.errors import InsufficientStorage, Overloaded, ServiceError
from service.logs import logger

MEMORY_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16


class Spool:
    """Bytes that one task puts in and another takes out, in order."""

    def __init__(self) -> None:
        self._file: IO[bytes] = BytesIO()
        self._last = b""
        self._put = self._taken = 0
        self._ended = False
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, data: bytes) -> None:
        """Let it be taken, at once and without waiting for whoever takes it.

        Raises:
            OSError: the disk has no room for it; what was put in before is there.
        """
        if isinstance(self._file, BytesIO) and self._put + len(data) > MEMORY_BYTES:
            self._file = _on_disk(self._file)
        self._file.seek(self._put)
        write_whole(self._file, data)
        self._put += len(data)
        self._changed.set()

    def end(self, last: bytes = b"") -> None:
        """No more will be put in, but a last piece that needs no room."""
        self._ended, self._last = True, last
        self._changed.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """All that is put in until the end, as soon as it is there."""
        while not self._ended or self._taken < self._put:
            await self._changed.wait()
            self._changed.clear()
            while self._taken < self._put:
                self._file.seek(self._taken)
                chunk = self._file.read(min(CHUNK_BYTES, self._put - self._taken))
                self._taken += len(chunk)
                yield chunk
            self._file.truncate(self._file.seek(0))
            self._put = self._taken = 0
        if self._last:
            yield self._last


def write_whole(file: IO[bytes], data: bytes) -> None:
    """Write all of it to a file that has no buffer, so that an OSError comes now or never."""
    while data:
        data = data[file.write(data) :]


def no_room(error: OSError, what: str, detail: str) -> ServiceError:
    """What the caller is told where a file for this cannot be made or written; the log is told of a full disk."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Overloaded("Too many files are open.", 1.0, "connections")
    logger.error(f"no room for {what}", folder=gettempdir(), reason=error.strerror)
    return InsufficientStorage(detail)


def _on_disk(memory: BytesIO) -> IO[bytes]:
    file = TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the spool
    try:
        write_whole(file, memory.getvalue())
    except OSError:
        file.close()
        raise
    return file
