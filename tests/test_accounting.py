"""Every request ends in one counted outcome, whatever becomes of it."""

import asyncio
import socket
import threading
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
import uvloop
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from service.accounting import Accounting, Record


def apology(record: Record) -> Response:
    return PlainTextResponse(f"sorry, {record.request_id}", 500)


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    with scope["state"]["record"].stage("think"):
        pass
    await PlainTextResponse("fine")(scope, receive, send)


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError("internal matters")


async def broken_midway(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ZeroDivisionError


async def get(app: Any, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(Accounting(app, apology))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        encoded = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
        return await client.get("/", headers=encoded)


def test_stages_are_timed_even_if_they_fail() -> None:
    record = Record("id")
    with pytest.raises(ZeroDivisionError), record.stage("decode"):
        raise ZeroDivisionError
    assert list(record.timings_ms()) == ["decode", "total"]


async def test_the_answer_tells_its_id_and_where_the_time_went() -> None:
    answer = await get(fine)
    assert len(answer.headers["x-request-id"]) == 32
    stages = dict(stage.split(";dur=") for stage in answer.headers["server-timing"].split(", "))
    assert list(stages) == ["think", "total"]
    assert 0 <= float(stages["think"]) <= float(stages["total"])


@pytest.mark.parametrize("given", ["abc", "4bf92f3577b34da6", "web-1:2024/05/01+x=y_z.", "x" * 128])
async def test_a_harmless_request_id_is_passed_through(given: str) -> None:
    assert (await get(fine, x_request_id=given)).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "\x1b[31m", '"}', "caf\xe9", "a,b", "<script>"])
async def test_any_other_is_replaced(given: str) -> None:
    assert (await get(fine, x_request_id=given)).headers["x-request-id"] != given


async def test_what_nobody_foresaw_is_logged_once_and_apologised_for() -> None:
    with capture_logs() as logged:
        answer = await get(broken, x_request_id="abc")
    assert (answer.status_code, answer.text) == (500, "sorry, abc")
    assert answer.headers["x-request-id"] == "abc"
    assert "total;dur=" in answer.headers["server-timing"]
    error, request = logged
    assert (error["event"], error["exc_info"]) == ("internal error", True)
    assert (request["event"], request["outcome"]) == ("request", "internal_error")


async def test_an_answer_that_breaks_off_is_left_to_the_server_to_cut() -> None:
    with capture_logs() as logged, pytest.raises(ZeroDivisionError):
        await get(broken_midway)
    assert [line["outcome"] for line in logged] == ["internal_error"]


async def test_a_request_that_the_server_gives_up_is_not_counted_as_well_answered() -> None:
    started = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    with capture_logs() as logged:
        request = asyncio.create_task(get(endless))
        await started.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert [line["outcome"] for line in logged] == ["aborted"]


async def test_every_request_is_counted_once_under_no_name_that_the_caller_chose() -> None:
    def counted(outcome: str) -> float:
        labels = {"endpoint": "unmatched", "model": "", "outcome": outcome}
        return REGISTRY.get_sample_value("volo_requests_total", labels) or 0.0

    before = counted("ok"), counted("internal_error")
    for app in (fine, broken, fine):
        await get(app)
    assert (counted("ok") - before[0], counted("internal_error") - before[1]) == (2, 1)


async def test_what_is_not_a_request_passes_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing(message: Message | None = None) -> Any:
        raise AssertionError

    await Accounting(app, apology)({"type": "lifespan"}, nothing, nothing)
    assert seen == [{"type": "lifespan"}]


class Leaving(asyncio.Protocol):
    left = threading.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.left.set()


def test_who_has_left_when_the_answer_is_sent_is_gone_and_no_fault_of_ours() -> None:
    uvloop.run(answer_who_has_left())


async def answer_who_has_left() -> None:
    theirs, ours = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(Leaving, sock=ours)
    theirs.close()
    await asyncio.get_running_loop().run_in_executor(None, Leaving.left.wait)
    await asyncio.sleep(0)  # the loop closes it behind that

    async def closed(message: Message) -> None:
        transport.write(b"what the loop says to it is what this is about")

    async def silence() -> Message:
        return {"type": "http.disconnect"}

    def count() -> float:
        labels = {"endpoint": "unmatched", "model": "", "outcome": "client_gone"}
        return REGISTRY.get_sample_value("volo_requests_total", labels) or 0.0

    before = count()
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with capture_logs() as logs:
        await Accounting(fine, apology)(scope, silence, closed)
    assert count() == before + 1
    assert [line["event"] for line in logs] == ["request"]


async def test_an_answer_that_the_server_cannot_make_sense_of_is_a_fault_of_ours() -> None:
    async def longer_than_told(scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}
        await send(start)
        await send({"type": "http.response.body", "body": b"two"})

    async def strict(message: Message) -> None:
        if message.get("body"):
            raise RuntimeError("Response content longer than Content-Length")

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with capture_logs() as logs, pytest.raises(RuntimeError, match="longer"):
        await Accounting(longer_than_told, apology)(scope, AsyncMock(), strict)
    assert [line["outcome"] for line in logs] == ["internal_error"]
