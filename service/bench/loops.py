"""How requests follow each other: in a closed loop each caller waits for its answer, in an open one nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.bench.samples import Samples, Seconds

Send = Callable[[], Awaitable[str]]
"""Sends one request: "ok", or the kind of error that it ended in."""

NOT_SENT = "not sent"
"""The kind of a request that found too many under way."""
_PAUSE_S = 0.05
"""After a connection failed: a server that is gone is not to be asked a hundred thousand times."""


def arrivals(rate: float, seconds: float, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """When requests of a Poisson process of ``rate`` a second come, in seconds from 0 up to ``seconds``."""
    random = np.random.default_rng(seed)
    expected = rate * seconds
    gaps = random.exponential(1 / rate, int(expected + 10 * expected**0.5 + 10))  # ten deviations are always enough
    times = gaps.cumsum()
    return times[times < seconds]


class Log:
    """Notes down one process's requests. Times are ``time.monotonic``'s, which all processes share."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float, str]] = []

    def note(self, due_s: float, sent_s: float, kind: str) -> None:
        """Note down that a request is done now."""
        self._rows.append((due_s, sent_s, time.monotonic(), kind))

    def samples(self, start_s: float, cpu_s: float) -> Samples:
        """All of them, in seconds from ``start_s``."""
        kinds = [row[3] for row in self._rows]
        names = ("ok", *sorted({*kinds} - {"ok"}))
        times: Seconds = np.array([row[:3] for row in self._rows], np.float64).reshape(-1, 3) - start_s
        number = {name: index for index, name in enumerate(names)}
        numbers = np.array([number[kind] for kind in kinds], np.int64)
        return Samples(times[:, 0], times[:, 1], times[:, 2], numbers, names, cpu_s)


async def closed_loop(send: Send, callers: int, until_s: float, log: Log) -> None:
    """So many callers, of whom each sends its next request when it has its answer, and none after ``until_s``."""
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(_call(send, until_s, log))


async def _call(send: Send, until_s: float, log: Log) -> None:
    while (sent_s := time.monotonic()) < until_s:
        kind = await send()
        log.note(sent_s, sent_s, kind)
        if kind == "connection":
            await asyncio.sleep(_PAUSE_S)


async def open_loop(send: Send, due_s: Sequence[float], cap: int, log: Log) -> None:
    """Send a request at each time of ``due_s``, whatever has become of those before.

    With ``cap`` of them under way the next ones are not sent, but noted down as ``NOT_SENT``.
    """
    under_way = 0

    async def send_one(due_s: float) -> None:
        nonlocal under_way
        sent_s = time.monotonic()
        log.note(due_s, sent_s, await send())
        under_way -= 1

    async with asyncio.TaskGroup() as group:
        for due in due_s:
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            if under_way < cap:
                under_way += 1
                group.create_task(send_one(due))
            else:
                log.note(due, time.monotonic(), NOT_SENT)
