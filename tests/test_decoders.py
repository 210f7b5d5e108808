"""Work goes to threads and its end comes back, whatever becomes of those who wait for it."""

import asyncio
import threading
import weakref

import pytest

from service.decoders import Decoders


async def test_work_is_done_in_another_thread() -> None:
    seen: list[int] = []
    await Decoders(1).submit(lambda: seen.append(threading.get_ident())).done
    assert seen != [threading.get_ident()]


async def test_what_the_work_raises_is_raised_to_who_waits_and_the_thread_goes_on() -> None:
    decoders = Decoders(1)
    with pytest.raises(ZeroDivisionError):
        await decoders.submit(lambda: 1 // 0).done
    await decoders.submit(lambda: None).done


async def test_as_many_are_done_at_once_as_there_are_threads() -> None:
    both = threading.Barrier(2)
    decoders = Decoders(2)
    async with asyncio.timeout(20):
        await asyncio.gather(*(decoders.submit(lambda: both.wait(20)).done for _ in range(2)))


async def test_what_is_not_wanted_any_more_is_not_begun() -> None:
    decoders, gate = Decoders(1), threading.Event()
    begun: list[str] = []
    first = decoders.submit(lambda: gate.wait(20))
    second = decoders.submit(lambda: begun.append("second"))
    second.wanted = False
    gate.set()
    await asyncio.gather(first.done, second.done)
    assert begun == []


async def test_the_threads_end_with_it() -> None:
    decoders = Decoders(2)
    inside = weakref.ref(decoders)
    threads: list[threading.Thread] = []
    await decoders.submit(lambda: threads.append(threading.current_thread())).done
    del decoders
    assert inside() is None
    await asyncio.to_thread(threads[0].join, 20)
    assert not threads[0].is_alive()


def test_a_loop_that_is_closed_meanwhile_disturbs_nobody() -> None:
    decoders, gate = Decoders(1), threading.Event()

    async def leave() -> None:
        decoders.submit(lambda: gate.wait(20))

    asyncio.run(leave())
    gate.set()

    async def ask() -> None:
        await decoders.submit(lambda: None).done

    asyncio.run(ask())
