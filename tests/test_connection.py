"""Connections over real sockets: nobody holds one open for nothing, and what is no request is told so."""

import asyncio
import json
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from calling import application, eventually, listening, outcomes, queue_depth, rejections, serving_engine
from fakes import FakeDevice
from test_api import png

from service import connection
from service.connection import HEAD_BYTES, PIPELINED, Connection, most_connections

PICTURE = png(1)
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE


class Caller:
    """A connection whose bytes the test chooses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, Any]:
        """The status and the JSON of the next answer."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).lower()
        length = int(head.partition(b"content-length:")[2].split()[0])
        return int(head.split()[1]), json.loads(await self.reader.readexactly(length))

    async def hung_up(self) -> bool:
        """Return when the other end has hung up; whether it said nothing before."""
        try:
            return await asyncio.wait_for(self.reader.read(), 20) == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def deaf(port: int, sent: bytes) -> AsyncIterator[socket.socket]:
    """A caller that has sent this and reads nothing; of what it is sent the systems hold a few kilobytes."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
        await asyncio.get_running_loop().sock_sendall(one, sent)
        yield one


@asynccontextmanager
async def served(device: FakeDevice | None = None, patience_s: float = 10.0, **settings: Any) -> AsyncIterator[int]:
    async with serving_engine(device) as engine, listening(application(engine, **settings), patience_s) as port:
        yield port


async def test_whoever_sends_nothing_is_hung_up_on_in_silence() -> None:
    async with served(patience_s=0.05) as port, connected(port) as silent:
        assert await silent.hung_up()


async def test_whoever_sends_its_headers_too_slowly_is_told_and_hung_up_on() -> None:
    before = outcomes()
    async with served(patience_s=0.05) as port, connected(port) as slow:
        slow.writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\n")
        status, told = await slow.answer()
        assert (status, told["code"]) == (408, "head_too_slow")
        assert await slow.hung_up()
    assert outcomes() - before == Counter({("unmatched", "head_too_slow"): 1})


async def test_a_second_request_has_no_more_time_for_its_headers_than_the_first() -> None:
    async with served(patience_s=0.2) as port, connected(port) as caller:
        caller.writer.write(POST)
        assert (await caller.answer())[0] == 200
        caller.writer.write(b"\r\n\r\nPOST /pre")
        assert (await caller.answer())[0] == 408


async def test_whoever_still_sends_does_not_lose_the_last_answer() -> None:
    """Reading nothing meanwhile, as proxies do; hung up on at once, it would find a connection reset."""
    body = bytes(15_000_000)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n" % len(body)
    async with served() as port, connected(port) as caller:
        caller.writer.write(head + b"X-Request-Timeout-Ms: none\r\n\r\n" + body)
        await caller.writer.drain()
        assert (await caller.answer())[0] == 422
        assert await caller.hung_up()


async def test_whoever_waits_for_an_answer_is_left_the_time() -> None:
    device = FakeDevice()
    device.gate.clear()
    async with served(device, patience_s=0.05) as port, connected(port) as caller:
        caller.writer.write(POST + b"GET /health/live HT")
        await device.under_way()
        await asyncio.sleep(0.2)  # some times the patience with headers
        device.gate.set()
        assert (await caller.answer())[0] == 200
        assert (await caller.answer())[0] == 408  # what has begun to come behind it did not come to its end


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"\0" * 99,
    ],
    ids=["TLS", "HTTP/2", "words", "zeros"],
)
async def test_what_is_no_request_is_told_so_and_counted(rubbish: bytes) -> None:
    before = outcomes()
    async with served() as port, connected(port) as caller:
        caller.writer.write(rubbish)
        status, told = await caller.answer()
        assert (status, told["code"]) == (400, "malformed_request")
        assert await caller.hung_up()
    assert outcomes() - before == Counter({("unmatched", "malformed_request"): 1})


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
        b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 10_000_000,
        b"GET /" + b"x" * 10_000_000,
        b"GET / HTTP/1.1\r\nX-Long: " + b"x" * HEAD_BYTES + b"\r\n\r\n",
    ],
    ids=["100,000 headers", "a header without an end", "a path without an end", "whole, and too long"],
)
async def test_a_head_without_an_end_is_refused_before_it_fills_the_memory(head: bytes) -> None:
    async with served() as port, connected(port) as caller:
        caller.writer.write(head)
        status, told = await caller.answer()
        assert (status, told["code"]) == (431, "head_too_large")


async def test_rubbish_behind_a_request_does_not_cost_it_its_answer() -> None:
    device = FakeDevice()
    device.gate.clear()
    async with served(device) as port, connected(port) as caller:
        caller.writer.write(POST + b"\0rubbish\r\n\r\n")
        await device.under_way()
        device.gate.set()
        assert (await caller.answer())[0] == 200
        assert await caller.hung_up()


async def test_a_few_requests_may_be_sent_ahead_and_what_is_beyond_is_refused_behind_their_answers() -> None:
    device, before, refused = FakeDevice(), outcomes(), rejections()
    device.gate.clear()
    async with served(device) as port, connected(port) as caller:
        caller.writer.write(POST + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
        await device.under_way()
        device.gate.set()
        assert [(await caller.answer())[0] for _ in range(1 + PIPELINED)] == [200] * (1 + PIPELINED)
        assert await caller.hung_up()
    told = {("/predict", "ok"): 1, ("/health/live", "ok"): PIPELINED, ("unmatched", "overloaded"): 1}
    assert outcomes() - before == Counter(told)
    assert rejections() - refused == {("", "connections"): 1}


async def test_answers_that_were_promised_arrive_whole_however_much_is_sent_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its caller reads nothing until the last of them is made, and still sends then."""
    before, loop = outcomes(), asyncio.get_running_loop()
    holding_answers(monkeypatch)
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    told = Counter({("/metrics", "ok"): 1 + PIPELINED, ("unmatched", "overloaded"): 1})
    async with served() as port, deaf(port, request * 20) as one:
        await eventually(lambda: outcomes() - before == told)
        sending = asyncio.create_task(loop.sock_sendall(one, request * 27_000))
        received = b""
        while some := await asyncio.wait_for(loop.sock_recv(one, 1 << 16), 20):
            received += some
        await sending
    *_, last = answers = received.split(b"HTTP/1.1 200 OK\r\n")[1:]
    head, _, body = last.partition(b"\r\n\r\n")
    assert len(answers) == 1 + PIPELINED
    assert int(head.partition(b"content-length: ")[2].split()[0]) == len(body)


async def test_whoever_leaves_with_requests_sent_ahead_has_none_of_them_computed() -> None:
    device, before = FakeDevice(), outcomes()
    device.gate.clear()
    async with served(device) as port, connected(port) as first:  # the device is taken, so the others wait
        first.writer.write(POST)
        await device.under_way()
        async with connected(port) as leaver:
            leaver.writer.write(POST * 3)
            await eventually(queue_depth)
        await eventually(lambda: outcomes() - before == Counter({("/predict", "client_gone"): 1}))
        device.gate.set()
        assert (await first.answer())[0] == 200
    assert len(device.batches) == 1


async def test_a_body_in_broken_chunks_is_told_so() -> None:
    async with served() as port, connected(port) as caller:
        caller.writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        status, told = await caller.answer()
        assert (status, told["code"]) == (400, "malformed_request")


async def test_whoever_does_not_read_its_answer_is_hung_up_on() -> None:
    before = outcomes()
    files = b"".join(b'{"image": "bm8gcGljdHVyZQ==", "id": "%s"}\n' % (b"x" * 500) for _ in range(9000))
    head = (
        b"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n"
    )
    async with served(patience_s=0.2) as port, deaf(port, head % len(files) + files):
        await eventually(lambda: outcomes() - before)
    assert outcomes() - before == Counter({("/predict/batch", "client_gone"): 1})


def unserved(**transport: Any) -> tuple[Connection, Mock]:
    """A connection without a server, and its transport, which has these attributes."""
    config = uvicorn.Config(Mock(), log_config=None, factory=True)
    taken = Connection(config, uvicorn.server.ServerState(), {}, patience_s=0.05)
    taken.connection_made(made := Mock(**transport))
    return taken, made


def holding_answers(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The connections that will be made. However long their answers are, the loop does not say that nobody reads them,
    and of what is not read the kernel holds a few kilobytes.
    """
    made: list[Connection] = []
    begin = Connection.connection_made

    def small(self: Connection, transport: Any) -> None:
        begin(self, transport)
        made.append(self)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        transport.set_write_buffer_limits(1 << 30)

    monkeypatch.setattr(Connection, "connection_made", small)
    return made


@pytest.mark.parametrize("last", [b"close", b"keep-alive", b"half-closed"])
async def test_what_nobody_reads_holds_no_connection_that_is_being_closed(
    last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = holding_answers(monkeypatch)
    head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: %s\r\n\r\n" % last
    async with served(patience_s=0.2) as port, deaf(port, head) as one:
        await eventually(lambda: made and made[0].transport.get_write_buffer_size())
        (held,) = made
        assert not held.flow.write_paused
        if last == b"half-closed":
            one.shutdown(socket.SHUT_WR)
        if last == b"keep-alive":
            held.timeout_keep_alive_handler()
        await eventually(lambda: held not in held.connections, 5)


@pytest.mark.parametrize("waits", [Connection.pause_writing, Connection.eof_received])
async def test_whoever_reads_slowly_is_left_the_time_to_read_to_the_end(waits: Callable[[Connection], None]) -> None:
    falling = range(900_000, 400_000, -100_000)
    dripping = range(400_000, 0, -1)
    taken, transport = unserved(**{"get_write_buffer_size.side_effect": chain(falling, dripping)})
    waits(taken)
    await eventually(lambda: transport.abort.called)
    assert transport.get_write_buffer_size.call_count > len(falling)
    taken.connection_lost(ConnectionAbortedError())


async def test_there_are_as_many_connections_as_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rejections()
    monkeypatch.setattr(connection, "most_connections", lambda: 1)
    async with served() as port, connected(port) as first:
        first.writer.write(POST)
        assert (await first.answer())[0] == 200
        async with connected(port) as second:
            status, told = await second.answer()
            assert (status, told["code"]) == (503, "overloaded")
            monkeypatch.setattr(connection, "LINGERING", 1)
            async with connected(port) as third:  # beside a second that lingers, there is no descriptor to linger with
                assert (await third.answer())[0] == 503
                assert await third.reader.read() == b""
        assert rejections() - before == {("", "connections"): 2}
        first.writer.write(POST)
        assert (await first.answer())[0] == 200


@pytest.mark.parametrize(("files", "connections"), [(8192, 8042), (160, 53), (2, 1)])
def test_what_is_no_connection_is_left_its_descriptors_or_most_of_few(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert most_connections() == connections


@pytest.mark.parametrize("path", [b"/nothing", b"/predict", b"/v2/health/live"])
async def test_a_body_whose_rest_comes_behind_its_answer_holds_no_connection(path: bytes) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" % path
    async with served(patience_s=0.2) as port, connected(port) as slow:
        slow.writer.write(head)
        assert (await slow.answer())[0] >= 400
        slow.writer.write(b"x")
        assert await slow.hung_up()


async def test_behind_a_body_that_was_answered_early_the_next_request_is_answered() -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    async with served() as port, connected(port) as one:
        one.writer.write(head)
        assert (await one.answer())[0] == 404
        one.writer.write(b"0123456789")
        one.writer.write(POST)
        assert (await one.answer())[0] == 200


async def test_a_caller_of_ipv4_is_the_same_at_a_socket_that_takes_ipv6_too() -> None:
    peer = Mock(**{"getpeername.return_value": ("::ffff:192.0.2.1", 9, 0, 0)})
    taken, _ = unserved(**{"get_extra_info.side_effect": {"socket": peer}.get})
    assert taken.client == ("192.0.2.1", 9)
    taken.connection_lost(None)


async def test_bodies_take_no_more_memory_than_they_may_together() -> None:
    begun = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 95000\r\n\r\n" + b"x" * 90_000
    before = rejections()
    async with served(max_bytes=100_000, body_memory=200_000) as port:
        async with connected(port) as one, connected(port) as other, connected(port) as third:
            for caller in (one, other):
                caller.writer.write(
                    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 95000\r\n\r\n" + b"x" * 90_000
                )
                await caller.writer.drain()
            await asyncio.sleep(0.05)  # for both to be received
            third.writer.write(begun)
            status, told = await third.answer()
            assert (status, told["code"]) == (503, "overloaded")
            assert rejections() - before == {("embedded", "memory"): 1}
            one.writer.write(b"x" * 5000)
            assert (await one.answer())[1]["code"] == "not_an_image"
        async with connected(port) as good:  # those who left have given theirs back
            good.writer.write(POST)
            assert (await good.answer())[0] == 200
