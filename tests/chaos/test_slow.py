"""Slow callers by the hundred, and such as vanish without a word: they are hung up on, and nobody else notices."""

import asyncio
import ctypes
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from loading import PICTURES, Load
from running import Service, serving, until
from test_leavers import held

TIMEOUT_S = 4.0
MARGIN_S = 10.0
"""For a machine that has other things to do; a slow caller would take a thousand seconds."""
SLOW = 150
"""Of each kind."""
DEAF = 10
"""Who do not read an answer: it has to be megabytes, for the systems themselves hold that much."""
PAUSE_S = 0.1
SETTINGS = {"VOLO_WORKERS": "1", "VOLO_TIMEOUT_S": str(TIMEOUT_S)}
WORKER = "volo: worker 0"
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PICTURES[0])
LINES = b"".join(b'{"image": "bm8gcGljdHVyZQ==", "id": "%s"}\n' % (b"x" * 900) for _ in range(4000))
BATCH = (
    b"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n"
    % len(LINES)
    + LINES
)


async def slow(service: Service, begun: bytes, more: bytes) -> float:
    """After how many seconds a caller is hung up on that begins so and sends the rest byte by byte."""
    url = httpx.URL(service.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    started_s = time.monotonic()
    writer.write(begun)
    ended = asyncio.create_task(reader.read())
    for byte in more:
        await asyncio.wait([ended], timeout=PAUSE_S)
        if ended.done():
            break
        writer.write(bytes([byte]))
    with suppress(ConnectionError):
        await ended
    writer.close()
    return time.monotonic() - started_s


def deaf(service: Service) -> socket.socket:
    """A caller that has asked for much, and reads none of it."""
    url = httpx.URL(service.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    connection.connect((url.host, url.port))
    connection.sendall(BATCH)
    return connection


async def test_hundreds_of_slow_callers_are_hung_up_on_in_time_and_the_others_do_not_notice(tmp_path: Path) -> None:
    with serving(tmp_path, **SETTINGS) as service:
        until(service.is_ready)
        worker = service.children[WORKER]
        load = Load(service)
        before = held(worker).files
        with load.under_way(4):
            heads = [slow(service, HEAD[:-2], b"X-A: " + b"a" * 9999) for _ in range(SLOW)]
            bodies = [slow(service, HEAD + PICTURES[0][:1000], PICTURES[0][1000:]) for _ in range(SLOW)]
            none = await asyncio.gather(*(asyncio.to_thread(deaf, service) for _ in range(DEAF)))
            took = await asyncio.gather(*heads, *bodies)
            await asyncio.to_thread(until, lambda: len(service.said(HUNG_UP)) == DEAF)
        for one in none:
            one.close()
        await asyncio.to_thread(until, lambda: held(worker).files <= before)
        assert service.children[WORKER] == worker
    assert min(took) > TIMEOUT_S - 1
    assert max(took) < TIMEOUT_S + MARGIN_S
    latencies = sorted(told.took_s for told in load.told)
    print(f"slow: {min(took):.2f} to {max(took):.2f} s; good: {len(latencies)}, {load.statuses()}, median")
    print(f"{latencies[len(latencies) // 2]:.3f} s, 99 % {latencies[len(latencies) * 99 // 100]:.3f} s")
    assert load.statuses().keys() == {200}
    assert latencies[len(latencies) // 2] < 0.5
    assert latencies[-1] < TIMEOUT_S


NEWNET = 0x40000000  # CLONE_NEWNET, which Python 3.11 does not know
HUNG_UP = "hung up on a caller that does not read its answer"
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""A command behind it has a network of its own, in which there is itself."""


def has_networks() -> bool:
    return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


def within(pid: int, do: Callable[[], None]) -> None:
    """Do it in the network of that process; what sockets it makes stay there."""
    with ThreadPoolExecutor(1) as thread, open(f"/proc/{pid}/ns/net") as network:
        assert thread.submit(ctypes.CDLL(None).setns, network.fileno(), NEWNET).result() == 0
        thread.submit(do).result()


def turn(pid: int, state: str) -> None:
    """Let everything through in the network of that process, or lose it without a word."""
    subprocess.run(["nsenter", "--net", "--target", str(pid), "ip", "link", "set", "lo", state], check=True)


@pytest.mark.skipif(not has_networks(), reason="needs to be root, and ip and unshare")
def test_callers_who_vanish_without_a_word_are_given_up(tmp_path: Path) -> None:
    """As behind a cable that is cut: no end and no reset ever comes."""
    with serving(tmp_path, within=ALONE, **SETTINGS) as service:
        until(lambda: service.said("ready"))
        pid, worker = service.process.pid, service.children[WORKER]
        callers: list[socket.socket] = []

        def call() -> None:
            url = httpx.URL(service.url)
            for begun in (
                b"",
                HEAD[:20],
                HEAD,
                HEAD + PICTURES[0][:1000],
                HEAD + PICTURES[0],
                BATCH[: len(BATCH) // 2],
            ):
                callers.append(socket.create_connection((url.host, url.port)))
                callers[-1].sendall(begun)
            callers.append(deaf(service))
            callers[-3].recv(1)  # the one that is answered stays connected

        def answered() -> None:
            assert service.predict().status_code == 200

        within(pid, answered)
        before = held(worker).files
        within(pid, call)
        assert held(worker).files >= before + len(callers) - 1
        turn(pid, "down")
        began_s = time.monotonic()
        until(lambda: held(worker).files <= before)
        took_s = time.monotonic() - began_s
        turn(pid, "up")
        within(pid, answered)
        for caller in callers:
            caller.close()
        print(f"{len(callers)} callers given up after {took_s:.1f} s")
        assert took_s < 3 * TIMEOUT_S + MARGIN_S
        assert service.children[WORKER] == worker
