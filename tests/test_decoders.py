"""Work goes to threads and its end comes back, whatever becomes of those who wait for it."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from service.decoders import Decoders, Heavy


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
    assert not second.abandon()
    gate.set()
    await asyncio.gather(first.done, second.done)
    assert begun == []


async def test_what_is_light_passes_by_what_is_heavy() -> None:
    decoders, gate = Decoders(1, 100), threading.Event()
    heavy = decoders.submit(lambda: Heavy(60, lambda: gate.wait(20)))
    await asyncio.wait_for(decoders.submit(lambda: None).done, 20)
    assert not heavy.done.done()
    gate.set()
    await heavy.done


async def test_heavy_works_share_a_memory_in_the_order_in_which_they_came() -> None:
    decoders, gate, begun = Decoders(3, 100), threading.Event(), SimpleQueue[int]()

    def heavy(number: int, need_bytes: int) -> Callable[[], Heavy]:
        def do() -> None:
            begun.put(number)
            gate.wait(20)

        return lambda: Heavy(need_bytes, do)

    works = []
    for number, need_bytes in enumerate((60, 60, 40)):
        works.append(decoders.submit(heavy(number, need_bytes)))
        await decoders.submit(lambda: None).done
    assert begun.get(timeout=20) == 0
    assert begun.empty()  # the third would fit, but then the second might wait for ever
    gate.set()
    await asyncio.gather(*(work.done for work in works))
    assert sorted(begun.get() for _ in range(2)) == [1, 2]


async def test_what_heavy_work_raises_is_raised_and_its_memory_is_free_again() -> None:
    decoders = Decoders(1, 100)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(decoders.submit(lambda: Heavy(100, lambda: 1 // 0)).done, 20)


async def test_heavy_work_that_is_not_wanted_any_more_is_not_begun() -> None:
    decoders, gate = Decoders(1, 100), threading.Event()
    begun: list[str] = []
    first = decoders.submit(lambda: Heavy(100, lambda: gate.wait(20)))
    second = decoders.submit(lambda: Heavy(100, lambda: begun.append("second")))
    await decoders.submit(lambda: None).done
    assert not second.abandon()
    gate.set()
    await asyncio.gather(first.done, second.done)
    assert begun == []


@pytest.mark.parametrize("heavy", [False, True], ids=["light", "heavy"])
async def test_what_is_abandoned_holds_no_picture_while_it_waits_for_its_turn(heavy: bool) -> None:
    class Picture:
        def decode(self) -> None: ...

        def open(self) -> Heavy | None:
            return Heavy(60, self.decode) if heavy else None

    decoders, gate, picture = Decoders(1, 100), threading.Event(), Picture()
    first = decoders.submit((lambda: Heavy(60, lambda: gate.wait(20))) if heavy else (lambda: gate.wait(20)))
    second, there = decoders.submit(picture.open), weakref.ref(picture)
    del picture
    if heavy:
        await decoders.submit(lambda: None).done
    second.abandon()
    assert there() is None
    gate.set()
    await asyncio.gather(first.done, second.done)


async def test_what_a_thread_is_at_goes_on_when_it_is_abandoned_but_its_rest_is_not_begun() -> None:
    decoders, entered, gate = Decoders(1, 100), threading.Event(), threading.Event()
    begun: list[str] = []

    def open_() -> Heavy:
        entered.set()
        gate.wait(20)
        return Heavy(60, lambda: begun.append("rest"))

    work = decoders.submit(open_)
    await asyncio.to_thread(entered.wait, 20)
    assert work.abandon()
    gate.set()
    await asyncio.wait_for(work.done, 20)
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
