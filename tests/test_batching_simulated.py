"""Whole days in a moment: callers, a queue and a device on a virtual clock."""

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import Batch, Job, Queue, halves
from service.costs import Costs

SECONDS = {1: 0.5, 2: 0.6, 4: 0.8, 8: 1.2}
RATE = 8 / SECONDS[8]
reproducible = settings(deadline=None, derandomize=True, max_examples=100)


@dataclass
class Caller:
    """Somebody who sends one picture, and may leave early; `broken` pictures make their run raise."""

    at_s: float
    patience_s: float
    leaves_after_s: float | None = None
    broken: bool = False
    comes_back: bool = False


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
        job = Job(key, self.now, self.now + caller.patience_s)
        if refusal := self.queue.submit(job, self.now):
            self.outcomes[key].append("refused")
            if caller.comes_back:
                again = Caller(self.now + refusal.retry_after_s, caller.patience_s)
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
            for job in batch.jobs:
                del self.waiting[job.key]
            self.handed_over.append(batch)
            self._fill_lanes()
        self.idled_with_work |= self.queue.depth > 0 and self.busy_lanes < self.queue.lanes

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
    callers: list[Caller]
    limit: int
    lanes: int
    ahead: int
    slowness: float  # of the device, against what its warm-up promised

    def play(self, watch: Callable[[Simulation, Batch], None] = lambda simulation, batch: None) -> Simulation:
        line = Queue(self.limit, Costs(SECONDS), self.lanes, self.ahead)
        return Simulation(line, lambda size: self.slowness * SECONDS[size], watch).play(self.callers)


def seconds_up_to(most: float) -> st.SearchStrategy[float]:
    return st.integers(0, 40).map(lambda part: most * part / 40)


scenarios = st.builds(
    Scenario,
    st.lists(
        st.builds(
            Caller,
            at_s=seconds_up_to(4.0),
            patience_s=seconds_up_to(4.0),
            leaves_after_s=st.none() | seconds_up_to(2.0),
            broken=st.sampled_from([False, False, False, True]),
        ),
        max_size=50,
    ),
    limit=st.integers(1, 30),
    lanes=st.integers(1, 3),
    ahead=st.integers(0, 1),
    slowness=st.sampled_from([0.5, 1.0, 1.1, 3.0]),
)


@given(scenarios)
@reproducible
def test_every_job_gets_exactly_one_outcome_and_it_is_its_own(scenario: Scenario) -> None:
    outcomes = scenario.play().outcomes
    assert all(len(outcomes[key]) == 1 for key in range(len(scenario.callers)))
    for key, caller in enumerate(scenario.callers):
        possible = {"refused", "expired", "failed"} if caller.broken else {"refused", "expired", "done", "late"}
        assert outcomes[key][0] in possible | ({"cancelled"} if caller.leaves_after_s is not None else set())


@given(scenarios)
@reproducible
def test_nothing_is_left_behind_when_all_is_done(scenario: Scenario) -> None:
    line = scenario.play().queue
    assert (line.depth, line.in_run) == (0, 0)


@given(scenarios)
@reproducible
def test_a_device_never_idles_while_a_job_waits(scenario: Scenario) -> None:
    assert not scenario.play().idled_with_work


@given(scenarios)
@reproducible
def test_no_job_that_left_or_became_hopeless_is_run(scenario: Scenario) -> None:
    def watch(simulation: Simulation, batch: Batch) -> None:
        for job in batch.jobs:
            assert job.key in simulation.waiting
            assert simulation.now + simulation.queue.costs.seconds(len(batch.jobs)) <= job.deadline_s

    scenario.play(watch)


@given(scenarios)
@reproducible
def test_batches_are_in_order_of_deadline_and_within_the_ladder(scenario: Scenario) -> None:
    def watch(simulation: Simulation, batch: Batch) -> None:
        deadlines = [job.deadline_s for job in batch.jobs]
        assert deadlines == sorted(deadlines)
        assert len(batch.jobs) <= batch.padded_size <= simulation.queue.costs.largest

    scenario.play(watch)


@given(scenarios)
@reproducible
def test_a_job_is_overtaken_only_by_a_run_that_it_could_not_bear(scenario: Scenario) -> None:
    def watch(simulation: Simulation, batch: Batch) -> None:
        costs = simulation.queue.costs
        ends_s = simulation.now + max(costs.seconds(size) for size in costs.ladder)
        passed_over = simulation.waiting.keys() - {job.key for job in batch.jobs}
        assert all(
            simulation.waiting[key].deadline_s < ends_s
            or simulation.waiting[key].deadline_s >= batch.jobs[-1].deadline_s
            for key in passed_over
        )

    scenario.play(watch)


# Under load


def crowd(size: int, load: float, patience_s: float, seed: int = 1) -> Iterator[Caller]:
    """Callers at `load` times what the device can serve; every tenth who is refused comes back when told."""
    chance, at_s = random.Random(seed), 0.0
    for number in range(size):
        at_s += chance.expovariate(load * RATE)
        yield Caller(at_s, patience_s, comes_back=number % 10 == 0)


def unsteady_device(seed: int = 2) -> Callable[[int], float]:
    chance = random.Random(seed)
    return lambda size: SECONDS[size] * chance.uniform(0.9, 1.1)


@pytest.mark.parametrize(("limit", "patience_s"), [(1000, 6.0), (32, 30.0)], ids=["deadline", "queue_full"])
def test_at_one_and_a_half_times_its_capacity_a_device_does_useful_work_all_the_time(
    limit: int, patience_s: float
) -> None:
    simulation = Simulation(Queue(limit, Costs(SECONDS)), unsteady_device()).play(crowd(20_000, 1.5, patience_s))
    total = Counter(outcome for outcomes in simulation.outcomes.values() for outcome in outcomes)
    assert total["done"] > 0.9 * RATE * simulation.now
    assert total["late"] + total["expired"] < 0.1 * total["done"]


@pytest.mark.parametrize(("limit", "patience_s"), [(1000, 6.0), (32, 30.0)], ids=["deadline", "queue_full"])
def test_who_comes_back_when_told_to_is_let_in_more_often_than_not(limit: int, patience_s: float) -> None:
    outcomes = Simulation(Queue(limit, Costs(SECONDS)), unsteady_device()).play(crowd(5_000, 1.5, patience_s)).outcomes
    second_tries = [outcome[0] for key, outcome in outcomes.items() if isinstance(key, tuple)]
    assert len(second_tries) > 100
    assert second_tries.count("refused") < 0.5 * len(second_tries)


def test_below_its_capacity_nobody_is_refused_or_late() -> None:
    simulation = Simulation(Queue(100, Costs(SECONDS)), unsteady_device()).play(crowd(5_000, 0.8, 8.0))
    assert {outcome for outcomes in simulation.outcomes.values() for outcome in outcomes} == {"done"}


@given(
    st.integers(1, 3),
    st.integers(1, 30),
    st.lists(seconds_up_to(6.0), min_size=1, max_size=50),
    st.integers(5, 40),
)
@reproducible
def test_who_comes_back_when_told_to_and_meets_nobody_new_is_let_in(
    lanes: int, limit: int, arrivals: list[float], patience: int
) -> None:
    line = Queue(limit, Costs(SECONDS), lanes)
    callers = [Caller(at_s, patience / 10) for at_s in sorted(arrivals)]
    callers += [Caller(max(arrivals), patience / 10, comes_back=True)]
    outcomes = Simulation(line, SECONDS.__getitem__).play(callers).outcomes
    assert outcomes.get(("again", len(callers) - 1)) != ["refused"]
