"""A request is worked on until its deadline, and while its caller is there."""

import asyncio
import math

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.accounting import Record
from service.errors import ClientGone, DeadlineExceeded, EngineUnavailable, InvalidParameter
from service.patience import Closing, Patience, timeout_s


class Caller:
    """One who has sent everything, and may leave."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.watched = asyncio.Event()
        self.request = Request({"type": "http", "headers": []}, self.receive)

    async def receive(self) -> Message:
        self.watched.set()
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_what_is_done_in_time_is_let_go_on() -> None:
    async with Patience(20, watch_after_s=0) as waiting:
        waiting.watch(Caller().request)
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def wait(caller: Caller, timeout_s: float | None) -> None:
    """Wait for what never comes."""
    async with Patience(timeout_s, watch_after_s=0) as waiting:
        waiting.watch(caller.request)
        await asyncio.Event().wait()


async def test_at_the_deadline_it_ends() -> None:
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        await wait(Caller(), 0.01)


async def test_when_the_caller_leaves_it_ends() -> None:
    caller = Caller()
    caller.left.set()
    with pytest.raises(ClientGone):
        await wait(caller, 20)


async def test_no_watcher_is_left_behind() -> None:
    caller = Caller()
    async with Patience(20, watch_after_s=0) as waiting:
        waiting.watch(caller.request)
        await caller.watched.wait()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_errors_from_within_and_cancellation_from_without_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Patience(20):
            raise ZeroDivisionError
    task = asyncio.create_task(wait(Caller(), 20))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_without_a_deadline_it_goes_on_until_the_caller_leaves() -> None:
    caller = Caller()
    caller.left.set()
    with pytest.raises(ClientGone):
        await wait(caller, None)


async def test_who_is_watched_twice_is_watched_once() -> None:
    caller = Caller()
    async with Patience(None, watch_after_s=0) as waiting:
        waiting.watch(caller.request)
        waiting.watch(caller.request)
        await caller.watched.wait()
        assert len(asyncio.all_tasks()) == 2


async def test_a_body_may_say_less_patience_than_the_headers_and_not_more() -> None:
    request = Request({"type": "http", "headers": [(b"x-request-timeout-ms", b"20")], "state": {"record": Record("")}})
    record: Record = request.state.record

    async def wait_less() -> None:
        async with Patience.of(request, 30) as waiting:
            waiting.at_most(request, 0.01)
            waiting.at_most(request, 30)
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        await wait_less()
    assert record.deadline_s == record.arrival_s + 0.01


@pytest.mark.parametrize(
    ("told", "seconds"), [([], math.inf), (["200"], 0.2), (["200 "], 0.2), (["9" * 400], math.inf), (["\t7"], 0.007)]
)
def test_a_caller_may_say_for_how_long_it_waits(told: list[str], seconds: float) -> None:
    headers = [(b"x-request-timeout-ms", value.encode()) for value in told]
    assert timeout_s(Request({"type": "http", "headers": headers})) == seconds


@pytest.mark.parametrize("told", [["0"], ["-1"], ["1.5"], [""], ["5000", "1"], ["200", "abc"], ["1 0"]])
def test_what_it_says_is_one_whole_number_or_refused(told: list[str]) -> None:
    headers = [(b"x-request-timeout-ms", value.encode()) for value in told]
    with pytest.raises(InvalidParameter, match="a whole number of milliseconds"):
        timeout_s(Request({"type": "http", "headers": headers}))


async def test_the_service_ends_once_however_often_it_is_told_to() -> None:
    closing = Closing()
    waiting, late = asyncio.Event(), []

    async def wait_for_the_end() -> None:
        try:
            async with closing.before():
                waiting.set()
                await asyncio.Event().wait()
        finally:
            late.append(True)

    task = asyncio.create_task(wait_for_the_end())
    await waiting.wait()
    closing.end()
    await asyncio.sleep(0)  # its limit is over, and it has not had its turn
    assert not late
    closing.end()
    with pytest.raises(EngineUnavailable):
        await task
    with pytest.raises(EngineUnavailable):
        await wait_for_the_end()
