"""One device with its HTTP workers on a virtual clock, around the queue that the engine itself uses."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from service.batching import Batch, Queue
from service.bench.samples import percentile
from service.bench.tables import CostTable
from service.line import Job
from service.plan.cores import Cores, Server

Stage = Literal["HTTP workers", "event loop", "device"]
"""In the order in which a request comes to them."""
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Replica:
    """One device, the HTTP workers that feed it with so many decoding threads each, and its settings."""

    costs: CostTable
    workers: int
    queue_limit: int
    timeout_s: float
    decode_threads: int = 1

    @property
    def decoders(self) -> int:
        """How many pictures all workers together decode at once."""
        return self.workers * self.decode_threads

    @property
    def cores(self) -> float:
        """How many tasks go on at full speed."""
        return self.costs.lanes if self.costs.shares_cores else math.inf


@dataclass(frozen=True)
class Outcome:
    """What became of the requests of one simulation.

    Attributes:
        latencies_s: from arrival to the end of the run, in order of arrival; NaN for those that were refused.
        reached_s: from arrival until a worker, and then the event loop, was done with each [2, requests].
        expired: of the refused, those that had been let in before.
        runs: how many runs there were of each number of pictures.
        device_busy: share of the time that a lane was busy.
        workers_busy: share of the time that a worker's thread was busy.
        loop_busy: share of the time that the engine's event loop was busy.
        seconds: from 0 until all was done.
    """

    latencies_s: NDArray[np.float64]
    reached_s: NDArray[np.float64]
    expired: int
    runs: Counter[int]
    device_busy: float
    workers_busy: float
    loop_busy: float
    seconds: float

    @property
    def refused(self) -> int:
        """How many got no answer in time, or none at all."""
        return int(np.isnan(self.latencies_s).sum())

    @property
    def mean_batch(self) -> float:
        """Pictures in a run; NaN if there was none."""
        return self.pictures_run / self.runs.total() if self.runs else math.nan

    @property
    def pictures_run(self) -> int:
        """How many pictures were in all runs together."""
        return sum(size * count for size, count in self.runs.items())

    def percentile_ms(self, percent: float) -> float:
        """Of those that were answered."""
        return percentile(self.latencies_s[~np.isnan(self.latencies_s)], percent) * 1e3

    def holds(self, slo_ms: float) -> bool:
        """Whether the 99th percentile is below, and nobody was refused: what `volo bench serve --slo-ms` asks for."""
        return not self.refused and self.percentile_ms(99) < slo_ms


def slowest_stage(replica: Replica, outcome: Outcome, slo_ms: float) -> Stage:
    """Where those who were late waited longest; who was refused has waited for all of the time that there was.

    To wait is to take longer than a lone request does, so that a long run is no fault of the device's.
    """
    ends_s = np.nan_to_num(outcome.latencies_s, nan=replica.timeout_s)
    late = np.isnan(outcome.latencies_s) | (ends_s * 1e3 >= slo_ms)
    stages_s = np.diff([np.zeros_like(ends_s), *outcome.reached_s, ends_s], axis=0)[:, late]
    costs = replica.costs
    lone_s = (costs.worker_cpu_seconds_per_picture, costs.engine_cpu_seconds_per_picture, costs.costs().seconds(1))
    return STAGES[int((stages_s.mean(axis=1) - lone_s).argmax())]


def simulate(replica: Replica, arrivals_s: Sequence[float], seed: int = 0) -> Outcome:
    """Play these arrivals, in order, to their end. Each goes to a worker at random, as the kernel spreads them."""
    return _Simulation(replica, random.Random(seed)).play(arrivals_s)


def holds(replica: Replica, arrivals_s: Sequence[float], slo_ms: float, seed: int = 0) -> bool:
    """Whether the outcome of the same holds; it is not played to its end if that is clear before."""
    outcome = _Simulation(replica, random.Random(seed), slo_ms / 1e3).play(arrivals_s)
    return outcome.holds(slo_ms)


class _Simulation:
    """Requests go to a worker, then through the engine's event loop into its queue, and in a batch to the device.

    It ends early, with requests that have got no answer, once more than one in a hundred was not faster than ``slo_s``.
    """

    def __init__(self, replica: Replica, chance: random.Random, slo_s: float = math.inf) -> None:
        costs = replica.costs
        self._slo_s = slo_s
        self._late = 0
        self._replica = replica
        self._chance = chance
        self._cores = Cores(replica.cores)
        self._workers = [
            Server(self._cores, costs.worker_cpu_seconds_per_picture, replica.decode_threads)
            for _ in range(replica.workers)
        ]
        self._loop = Server(self._cores, costs.engine_cpu_seconds_per_picture)
        self._queue = Queue(replica.queue_limit, costs.costs(), costs.lanes, costs.ahead)
        self._usual_s = costs.costs()  # of a run; what the queue has learned by then is only what it expects
        self._handed_over: deque[Batch] = deque()
        self._running = 0
        self._busy_s = 0.0
        self._expired = 0
        self._runs: Counter[int] = Counter()

    def play(self, arrivals_s: Sequence[float]) -> Outcome:
        cores, pick, workers = self._cores, self._chance.choice, self._workers
        self._arrivals_s = arrivals_s
        self._latencies_s = np.full(len(arrivals_s), np.nan)
        self._reached_s = np.full((2, len(arrivals_s)), np.nan)
        for number, arrival_s in enumerate(arrivals_s):
            if self._late > len(arrivals_s) // 100:
                break
            cores.pass_to(arrival_s)
            pick(workers).serve(partial(self._hand_in, number))
        cores.pass_to(math.inf)
        seconds = max(cores.now, 1e-9)
        return Outcome(
            latencies_s=self._latencies_s,
            reached_s=self._reached_s,
            expired=self._expired,
            runs=self._runs,
            device_busy=self._busy_s / self._queue.lanes / seconds,
            workers_busy=sum(worker.busy_s for worker in workers) / self._replica.decoders / seconds,
            loop_busy=self._loop.busy_s / seconds,
            seconds=seconds,
        )

    def _hand_in(self, number: int) -> None:
        self._reached_s[0, number] = self._cores.now - self._arrivals_s[number]
        self._loop.serve(partial(self._submit, number))

    def _submit(self, number: int) -> None:
        now = self._cores.now
        self._reached_s[1, number] = now - self._arrivals_s[number]
        job = Job(number, now, self._arrivals_s[number] + self._replica.timeout_s)
        if self._queue.submit(job, now) is None:
            self._pump()

    def _pump(self) -> None:
        """Do what the queue says is next, as the engine does."""
        now = self._cores.now
        self._expired += len(self._queue.expire(now))
        while batch := self._queue.take(now):
            self._handed_over.append(batch)
        self._fill_lanes(idle=not self._running)

    def _fill_lanes(self, idle: bool) -> None:
        while self._handed_over and self._running < self._queue.lanes:
            batch = self._handed_over.popleft()
            self._running += 1
            run_s = self._run_s(batch, batch.alone or (idle and self._queue.lanes == 1))
            if batch.alone:  # its other threads begin and end with the one that is waited for
                for _ in range(self._replica.costs.alone_threads - 1):
                    self._cores.start(run_s, lambda: None)
            self._cores.start(run_s, partial(self._end, batch, self._cores.now))

    def _run_s(self, batch: Batch, alone: bool) -> float:
        """What a run takes on the device: as usual, give or take what runs differ by."""
        spread, size = self._replica.costs.spread, batch.padded_size
        alone_s = self._replica.costs.alone_seconds_by_batch_size.get(size) if alone else None
        return (alone_s or self._usual_s.seconds(size)) * self._chance.choice(spread)

    def _end(self, batch: Batch, started_s: float) -> None:
        now = self._cores.now
        self._running -= 1
        self._busy_s += now - started_s
        self._runs[len(batch.jobs)] += 1
        for job in batch.jobs:
            self._latencies_s[job.key] = latency_s = now - self._arrivals_s[job.key]
            self._late += latency_s >= self._slo_s
        self._queue.finished(batch, now - started_s)
        self._fill_lanes(idle=False)
        self._pump()
