"""The load generator, against small real servers."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.parser import BytesParser

import numpy as np
import pytest

from service.bench import cpu
from service.bench.child import last_words
from service.bench.client import FORM_TYPE, Target, as_form, connected, verdict
from service.bench.crew import Closed, Open, hired
from service.bench.figures import Figures
from service.bench.loops import NOT_SENT, Log, arrivals, closed_loop, open_loop
from service.bench.samples import Samples
from service.bench.stand import built

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n" + b'{"predictions":[]}'
OVERLOADED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 21\r\n\r\n" + b'{"code":"overloaded"}'


class Server:
    """Answers every request with the same bytes, while its gate is open."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.gate = asyncio.Event()
        self.gate.set()
        self.bodies: list[bytes] = []
        self.connections = 0
        self.received = asyncio.Semaphore(0)
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                self.bodies.append(await reader.readexactly(int(length[1]) if length else 0))
                self.received.release()
                await self.gate.wait()
                writer.write(self.answer)


@asynccontextmanager
async def answering(answer: bytes = OK) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/predict"
    async with listener:
        yield server


async def in_a_closed_loop(server: Server, callers: int, seconds: float = 0.2) -> Samples:
    log = Log()
    start_s = time.monotonic()
    async with connected(Target(server.url, [b"first", b"second"], expected=b"predictions")) as client:
        await closed_loop(client.send, callers, start_s + seconds, log)
    return log.samples(start_s, 0.0)


async def test_callers_reuse_their_connections_and_send_the_pictures_in_turn() -> None:
    async with answering() as server:
        taken = await in_a_closed_loop(server, callers=3)
    assert taken.errors() == {}
    assert server.connections == 3
    assert server.bodies[:4] == [b"first", b"second", b"first", b"second"]
    assert len(taken.latencies_s()) == len(server.bodies)


async def test_errors_are_told_apart() -> None:
    async with answering(OVERLOADED) as server:
        assert in_kinds(await in_a_closed_loop(server, 2)) == {"503 overloaded"}
    async with answering(OK.replace(b"predictions", b"predicament")) as server:
        assert in_kinds(await in_a_closed_loop(server, 2)) == {"unexpected answer"}
    assert in_kinds(await in_a_closed_loop(server, 2)) == {"connection"}


def in_kinds(taken: Samples) -> set[str]:
    """The errors' kinds, where there was nothing else."""
    assert not taken.latencies_s().size
    return set(taken.errors())


async def test_an_answer_that_takes_too_long_is_a_timeout() -> None:
    async with answering() as server:
        server.gate.clear()
        async with connected(Target(server.url, [b"picture"], timeout_s=0.05)) as client:
            assert await client.send() == "timeout"


async def test_a_stalled_server_cannot_hide_from_an_open_loop() -> None:
    log, start_s = Log(), time.monotonic()
    async with answering() as server, connected(Target(server.url, [b"picture"])) as client:
        server.gate.clear()
        load = asyncio.create_task(open_loop(client.send, [start_s + n / 1000 for n in range(20)], 100, log))
        for _ in range(20):  # all are sent, though none is answered
            await server.received.acquire()
        opened_s = time.monotonic() - start_s
        server.gate.set()
        await load
    taken = log.samples(start_s, 0.0)
    assert (taken.latencies_s() >= opened_s - taken.due_s).all()


async def test_what_is_sent_late_is_late() -> None:
    log, start_s = Log(), time.monotonic()
    async with answering() as server, connected(Target(server.url, [b"picture"])) as client:
        await open_loop(client.send, [start_s - 5.0], 1, log)
    taken = log.samples(start_s - 5.0, 0.0)
    assert taken.latencies_s()[0] >= 5.0
    assert taken.lags_s()[0] >= 5.0


async def test_an_open_loop_keeps_to_its_cap() -> None:
    log, start_s = Log(), time.monotonic()
    async with answering() as server, connected(Target(server.url, [b"picture"])) as client:
        server.gate.clear()
        load = asyncio.create_task(open_loop(client.send, [start_s] * 5, 2, log))
        for _ in range(2):
            await server.received.acquire()
        server.gate.set()
        await load
    taken = log.samples(start_s, 0.0)
    assert taken.errors() == {NOT_SENT: 3}
    assert len(server.bodies) == 2


def test_arrivals_are_the_same_for_a_seed_and_as_many_as_the_rate_says() -> None:
    times = arrivals(200.0, 50.0, seed=7)
    assert times.tolist() == arrivals(200.0, 50.0, seed=7).tolist()
    assert times.tolist() != arrivals(200.0, 50.0, seed=8).tolist()
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as of an exponential distribution
    assert 0 <= times[0] < times[-1] < 50.0


def test_generators_share_a_load() -> None:
    assert [Closed(5).share(number, 3).connections for number in range(3)] == [2, 2, 1]
    parts = [Open(90.0, cap=30, seed=(4,)).share(number, 3) for number in range(3)]
    assert [(part.rate, part.cap) for part in parts] == [(30.0, 10)] * 3
    assert len({part.seed for part in parts}) == 3


async def test_several_processes_make_one_load() -> None:
    async with answering() as server:
        target = Target(server.url, [b"picture"])

        def measure() -> Samples:
            with hired(target, 2) as crew:
                crew.start(Closed(2), seconds=0.3, warm_up_s=0.0)
                return crew.finish()

        taken = await asyncio.to_thread(measure)
    assert server.connections == 2
    assert len(taken.latencies_s()) == len(server.bodies)
    assert taken.cpu_s > 0


async def test_a_load_that_is_broken_off_leaves_what_there_is() -> None:
    async with answering() as server:
        target = Target(server.url, [b"picture"])
        loop = asyncio.get_running_loop()

        def measure() -> Samples:
            with hired(target, 1) as crew:
                crew.start(Open(500.0), seconds=3600.0, warm_up_s=0.0)
                asyncio.run_coroutine_threadsafe(server.received.acquire(), loop).result()
                crew.stop()
                return crew.finish()

        taken = await asyncio.to_thread(measure)
    assert taken.errors() == {}


async def test_ctrl_c_leaves_the_figures_of_what_there_was() -> None:
    def measure(server: Server) -> list[Figures]:
        def break_off(_: str, part: float) -> None:
            if part > 0 and len(server.bodies) > 20:
                raise KeyboardInterrupt

        with built(Target(server.url, [b"picture"]), 1, 3600.0, 0.0, None, break_off) as stand:
            with pytest.raises(KeyboardInterrupt):
                stand.measure(Closed(1))
            return stand.steps

    async with answering() as server:
        (step,) = await asyncio.to_thread(measure, server)
    assert step.seconds < 60
    assert step.answered > 0


def test_the_kind_of_an_error_is_its_status_and_its_code_if_it_has_one() -> None:
    assert verdict(200, b"all is well", b"well") == "ok"
    assert verdict(200, b"", b"well") == "unexpected answer"
    assert verdict(504, b'{"code":"deadline_exceeded"}', b"") == "504 deadline_exceeded"
    assert [verdict(502, body, b"") for body in (b"<html>", b"[]", b"{}", b"\xff")] == ["502"] * 4


def test_the_reason_why_a_service_ended_is_found_in_its_log() -> None:
    grave = '{"level":"critical","event":"cannot start","reason":"no such device"}'
    assert last_words(f'{{"level":"info"}}\n{grave}\n{{"level":"info","event":"stopping"}}\n') == "no such device"
    assert last_words("Traceback:\nMemoryError\n") == "MemoryError"
    assert last_words("") == "it said nothing"


def test_a_form_holds_the_picture_under_its_field() -> None:
    form = BytesParser().parsebytes(f"Content-Type: {FORM_TYPE}\r\n\r\n".encode() + as_form(b"\xff\xd8pixels", "file"))
    _, part = form.walk()
    assert part.get_param("name", header="Content-Disposition") == "file"
    assert part.get_content_type() == "image/jpeg"
    assert part.get_payload(decode=True) == b"\xff\xd8pixels"


def test_a_process_s_use_of_the_processors_is_seen() -> None:
    before = cpu.tree_seconds(os.getpid())
    while time.process_time() < 0.1:
        pass
    after = cpu.tree_seconds(os.getpid())
    assert sum(after.values()) >= 0.1 - 0.02  # the clock ticks a hundred times a second
    assert all(busy >= 0 for busy in cpu.cores(before, after, 1.0).values())
