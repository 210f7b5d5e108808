"""What is done in a thread is done before anybody lets go of what it uses, whoever leaves."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from service.threads import in_thread


class Doing:
    """Something that a thread does until it is told to end."""

    def __init__(self, end: Callable[[], object] = lambda: None) -> None:
        self.begun, self.gate, self.ended = threading.Event(), threading.Event(), False
        self._end = end

    def __call__(self) -> object:
        self.begun.set()
        assert self.gate.wait(20)
        self.ended = True
        return self._end()


def fail() -> None:
    raise ZeroDivisionError


async def test_it_gives_what_the_thread_returns_or_raises() -> None:
    assert await in_thread(None, max, 1, 2) == 2
    assert await in_thread(None, threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await in_thread(None, fail)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("end", [lambda: None, fail], ids=["returns", "raises"])
async def test_cancelled_it_is_waited_for_however_often_and_whatever_comes_of_it(end: Any, times: int) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    doing = Doing(end)
    task = asyncio.create_task(in_thread(None, doing))
    await asyncio.to_thread(doing.begun.wait, 20)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    doing.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert doing.ended
    del task
    gc.collect()
    assert not complaints


async def test_what_it_raises_keeps_nothing_that_it_was_given() -> None:
    class Body:
        pass

    def refuse(body: Body) -> None:
        raise ZeroDivisionError

    body = Body()
    there = weakref.ref(body)
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            await in_thread(None, refuse, body)
        del body
        await asyncio.sleep(0)
        left = there()
    finally:
        gc.enable()
    assert left is None
