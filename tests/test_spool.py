"""What is put in comes out in its order, at once or when the caller is ready for it."""

import asyncio
import os

import pytest

from service import spool
from service.spool import Spool


async def taken(source: Spool) -> bytes:
    return b"".join([chunk async for chunk in source.chunks()])


@pytest.mark.parametrize("size", [0, 1, spool.CHUNK_BYTES, 3 * spool.MEMORY_BYTES + 1])
async def test_all_that_was_put_in_comes_out(size: int) -> None:
    data = os.urandom(size)
    with Spool() as lines:
        for start in range(0, size, 50_000):
            lines.put(data[start : start + 50_000])
        lines.end()
        assert await taken(lines) == data


async def test_what_is_put_in_is_there_at_once_and_the_end_too() -> None:
    with Spool() as lines:
        chunks = lines.chunks()
        for number in range(100):
            waiting = asyncio.ensure_future(anext(chunks))
            await asyncio.sleep(0)
            assert not waiting.done()
            lines.put(b"%d" % number)
            assert await waiting == b"%d" % number
        waiting_for_end = asyncio.ensure_future(anext(chunks, None))
        await asyncio.sleep(0)
        lines.end()
        assert await waiting_for_end is None


async def test_what_is_put_in_while_more_is_taken_is_not_lost() -> None:
    with Spool() as lines:
        lines.put(b"a" * spool.CHUNK_BYTES + b"b")
        chunks = lines.chunks()
        assert await anext(chunks) == b"a" * spool.CHUNK_BYTES
        lines.put(b"c")
        assert await anext(chunks) == b"bc"
        lines.put(b"d")
        lines.end()
        assert [chunk async for chunk in chunks] == [b"d"]


def files_open() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_much_lies_on_disk_until_it_is_left() -> None:
    before = files_open()
    with Spool() as lines:
        lines.put(bytes(spool.MEMORY_BYTES + 1))
        assert files_open() == before + 1
    assert files_open() == before
