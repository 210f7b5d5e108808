"""Callers, a queue and a device on a virtual clock."""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from service.batching import BACKGROUND_SHARE, Batch, Queue, halves
from service.costs import Costs
from service.line import Job

SECONDS = {1: 0.5, 2: 0.6, 4: 0.8, 8: 1.2}
RATE = 8 / SECONDS[8]
"""Of a lane's pictures a second."""


@dataclass
class Caller:
    """Somebody who sends one picture, and may leave early; `broken` pictures make their run raise."""

    at_s: float
    patience_s: float
    leaves_after_s: float | None = None
    broken: bool = False
    comes_back: bool = False
    background: bool = False


@dataclass
class Simulation:
    """Plays callers against a queue; a run of n jobs takes `run_seconds(padded size)` on the device."""

    queue: Queue
    run_seconds: Callable[[int], float]
    watch: Callable[["Simulation", Batch], None] = lambda simulation, batch: None
    now: float = 0.0
    outcomes: dict[Hashable, list[str]] = field(default_factory=lambda: defaultdict(list))
    waiting: dict[Hashable, Job] = field(default_factory=dict)
    busy_lanes: int = 0
    handed_over: deque[Batch] = field(default_factory=deque)
    idled_with_work: bool = False
    """Whether a lane was idle, but for the one that the background leaves, while a job waited."""
    owed_s: float = 0.0
    most_owed_s: float = 0.0
    """How far the background fell behind its share, at most, in any span in which a job waited there."""
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)
    _broken: set[Hashable] = field(default_factory=set)

    def play(self, callers: Iterable[Caller]) -> "Simulation":
        for key, caller in enumerate(callers):
            self._at(caller.at_s, self._arrive, key, caller)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._pump()
        return self

    def _at(self, when_s: float, event: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), lambda: event(*args)))

    def _arrive(self, key: Hashable, caller: Caller) -> None:
        job = Job(key, self.now, self.now + caller.patience_s, caller.background)
        if refusal := self.queue.submit(job, self.now):
            self.outcomes[key].append("refused")
            if caller.comes_back:
                again = replace(caller, at_s=self.now + refusal.retry_after_s, comes_back=False)
                self._at(again.at_s, self._arrive, ("again", key), again)
            return
        self.waiting[key] = job
        if caller.broken:
            self._broken.add(key)
        if caller.leaves_after_s is not None:
            self._at(self.now + caller.leaves_after_s, self._leave, key)

    def _leave(self, key: Hashable) -> None:
        if self.queue.cancel(key):
            del self.waiting[key]
            self.outcomes[key].append("cancelled")

    def _pump(self) -> None:
        for job in self.queue.expire(self.now):
            del self.waiting[job.key]
            self.outcomes[job.key].append("expired")
        while batch := self.queue.take(self.now):
            self.watch(self, batch)
            self._note_share(batch)
            for job in batch.jobs:
                del self.waiting[job.key]
            self.handed_over.append(batch)
            self._fill_lanes()
        queue = self.queue
        self.idled_with_work |= queue.depth > 0 and self.busy_lanes < queue.lanes
        self.idled_with_work |= queue.background_depth > 0 and self.busy_lanes < max(1, queue.lanes - 1)

    def _note_share(self, batch: Batch) -> None:
        seconds = self.queue.costs.seconds(len(batch.jobs))
        behind_s = seconds * sum(job.background for job in batch.jobs) / len(batch.jobs)
        owed_s = self.owed_s + BACKGROUND_SHARE * (seconds - behind_s) - behind_s
        self.owed_s = max(owed_s, 0.0) if self.queue.background_depth else 0.0
        self.most_owed_s = max(self.most_owed_s, self.owed_s)

    def _fill_lanes(self) -> None:
        while self.handed_over and self.busy_lanes < self.queue.lanes:
            batch = self.handed_over.popleft()
            self.busy_lanes += 1
            self._run(batch, [batch.jobs], self.now)

    def _run(self, batch: Batch, parts: list[tuple[Job, ...]], started_s: float) -> None:
        seconds = self.run_seconds(self.queue.costs.padded_size(len(parts[0])))
        self._at(self.now + seconds, self._end, batch, parts, started_s)

    def _end(self, batch: Batch, parts: list[tuple[Job, ...]], started_s: float) -> None:
        jobs, *rest = parts
        raised = any(job.key in self._broken for job in jobs)
        if raised and len(jobs) > 1:
            rest = [*halves(jobs), *rest]
        else:
            self._answer(jobs, raised)
        if rest:
            return self._run(batch, rest, started_s)
        clean = jobs == batch.jobs and not raised
        self.queue.finished(batch, self.now - started_s if clean else None)
        self.busy_lanes -= 1
        self._fill_lanes()

    def _answer(self, jobs: tuple[Job, ...], raised: bool) -> None:
        for job in jobs:
            in_time = "done" if self.now <= job.deadline_s else "late"
            self.outcomes[job.key].append("failed" if raised else in_time)


@dataclass
class Scenario:
    """Callers in a queue before lanes of a device."""

    callers: list[Caller]
    limit: int
    lanes: int
    ahead: int
    slowness: float  # of the device, against what its warm-up promised

    def play(self, watch: Callable[[Simulation, Batch], None] = lambda simulation, batch: None) -> Simulation:
        line = Queue(self.limit, Costs(SECONDS), self.lanes, self.ahead)
        return Simulation(line, lambda size: self.slowness * SECONDS[size], watch).play(self.callers)
