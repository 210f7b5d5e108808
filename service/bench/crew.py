"""The processes that make the load: each has an event loop of its own, and none knows torch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import uvloop

from service.bench.client import Client, Target, connected
from service.bench.loops import Log, arrivals, closed_loop, open_loop
from service.bench.samples import Samples, merge

_LEAD_S = 0.2
"""Between the order and the first request, so that all begin together."""
_TICK_S = 1e-3
"""By so much uvloop's timers may end early; what is sent before its time counts as warm-up."""


@dataclass(frozen=True)
class Closed:
    """As many callers, of whom each waits for its answer before it sends the next request."""

    connections: int

    @property
    def title(self) -> str:
        """The load in words."""
        return f"{self.connections} connection{'s' * (self.connections > 1)}"

    def share(self, number: int, of: int) -> Closed:
        """What generator ``number`` does of it."""
        return Closed(self.connections // of + (number < self.connections % of))


@dataclass(frozen=True)
class Open:
    """Poisson arrivals of ``rate`` a second, whatever becomes of them; at most ``cap`` are under way at once."""

    rate: float
    cap: int = 4096
    seed: tuple[int, ...] = (0,)

    @property
    def title(self) -> str:
        """The load in words."""
        return f"{self.rate:.4g} a second"

    def share(self, number: int, of: int) -> Open:
        """What generator ``number`` does of it: together they are a Poisson process again."""
        return Open(self.rate / of, max(1, self.cap // of), (*self.seed, number))


@dataclass(frozen=True)
class Step:
    """One load: what is measured in the ``seconds`` from ``start_s`` on, after ``warm_up_s`` of the same."""

    load: Closed | Open
    start_s: float
    seconds: float
    warm_up_s: float


class Crew:
    """Generators that are waiting for a load."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def start(self, load: Closed | Open, seconds: float, warm_up_s: float = 1.0) -> float:
        """Start a load: when its window begins, by ``time.monotonic``."""
        start_s = time.monotonic() + _LEAD_S + warm_up_s
        for number, pipe in enumerate(self._pipes):
            pipe.send(Step(load.share(number, len(self._pipes)), start_s, seconds, warm_up_s))
        return start_s

    def finish(self) -> Samples:
        """Wait for all that was sent to be answered: every request of the load."""
        return merge([pipe.recv() for pipe in self._pipes])

    def stop(self) -> None:
        """Have the load end now; ``finish`` then has what there is."""
        for pipe in self._pipes:
            pipe.send(None)


@contextmanager
def hired(target: Target, processes: int) -> Iterator[Crew]:
    """So many generators for one target; at the end of the block they are gone."""
    context = get_context("spawn")
    pipes: list[Connection] = []
    workers: list[SpawnProcess] = []
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_generate, args=(theirs, target), daemon=True)
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        for pipe in pipes:
            pipe.recv()  # it is there
        yield Crew(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.join()


def _generate(pipe: Connection, target: Target) -> None:
    """A generator's life: it does step after step, and ends when its pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send("ready")
        while True:
            step = pipe.recv()
            if step is not None:
                pipe.send(uvloop.run(_perform(step, target, pipe)))


async def _perform(step: Step, target: Target, pipe: Connection) -> Samples:
    """One step, or as much of it as there is when something comes through the pipe."""
    log = Log()
    async with connected(target) as client:
        work = asyncio.create_task(_load(client, step, log))
        clock = asyncio.create_task(_window_cpu_s(step))
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work
        loop.remove_reader(pipe.fileno())
        os.set_blocking(pipe.fileno(), True)  # uvloop has left it otherwise
        clock.cancel()
        cpu_s = await clock
    return log.samples(step.start_s, cpu_s)


async def _load(client: Client, step: Step, log: Log) -> None:
    begin_s = step.start_s - step.warm_up_s
    if isinstance(step.load, Open):
        times = begin_s + arrivals(step.load.rate, step.warm_up_s + step.seconds, step.load.seed)
        await open_loop(client.send, times.tolist(), step.load.cap, log)
        return
    await asyncio.sleep(begin_s - time.monotonic() + _TICK_S)
    await closed_loop(client.send, step.load.connections, step.start_s + step.seconds, log)


async def _window_cpu_s(step: Step) -> float:
    """CPU seconds that this process spends in the step's window, or in what there is of it when cancelled."""
    before_s = time.process_time()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(step.start_s - time.monotonic())
        before_s = time.process_time()
        await asyncio.sleep(step.seconds)
    return time.process_time() - before_s
