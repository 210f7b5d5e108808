"""What is to be sent waits here until the caller takes it: in memory, and on disk if it is much."""

import asyncio
from collections.abc import AsyncIterator
from os import SEEK_END
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

MEMORY_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16


class Spool:
    """Bytes that one task puts in and another takes out, in order."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 - closed on exit
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
        """Let it be taken, at once and without waiting for whoever takes it."""
        self._file.seek(0, SEEK_END)
        self._put += self._file.write(data)
        self._changed.set()

    def end(self) -> None:
        """No more will be put in."""
        self._ended = True
        self._changed.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """All that is put in until the end, as soon as it is there."""
        while not self._ended or self._taken < self._put:
            await self._changed.wait()
            self._changed.clear()
            while self._taken < self._put:
                self._file.seek(self._taken)
                chunk = self._file.read(CHUNK_BYTES)
                self._taken += len(chunk)
                yield chunk
            self._file.truncate(self._file.seek(0))
            self._put = self._taken = 0
