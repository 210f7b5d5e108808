"""What holds of the queue whatever comes, whoever leaves, whatever fails, and however fast the device is."""

import heapq
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import SECONDS, Caller, Scenario, Simulation

from service.batching import BACKGROUND_SHARE, Batch, Queue
from service.costs import Costs

reproducible = settings(deadline=None, derandomize=True, max_examples=100)


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
            background=st.sampled_from([False, False, True]),
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
    assert (line.depth, line.background_depth, line.in_run) == (0, 0, 0)


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
        ranks = [(job.background, job.deadline_s) for job in batch.jobs]
        assert ranks == sorted(ranks)
        assert len(batch.jobs) <= batch.padded_size <= simulation.queue.costs.largest

    scenario.play(watch)


@given(scenarios)
@reproducible
def test_a_job_is_overtaken_only_by_a_run_that_it_could_not_bear(scenario: Scenario) -> None:
    def watch(simulation: Simulation, batch: Batch) -> None:
        costs, waiting = simulation.queue.costs, simulation.waiting
        ends_s = simulation.now + max(costs.seconds(size) for size in costs.ladder)
        for background in (False, True):
            deadlines = [job.deadline_s for job in batch.jobs if job.background is background]
            passed_over = [waiting[key] for key in waiting.keys() - {job.key for job in batch.jobs}]
            assert all(
                job.deadline_s < ends_s or job.deadline_s >= max(deadlines, default=0.0)
                for job in passed_over
                if job.background is background
            )

    scenario.play(watch)


# Those in the background


@given(scenarios, st.integers(1, 20))
@reproducible
def test_the_background_gets_its_share_while_it_waits_and_others_lose_no_more(scenario: Scenario, many: int) -> None:
    """All there are far from their deadlines, because who cannot be met is owed nothing."""
    behind = [Caller(4.0 * number / many, 1000.0, background=True) for number in range(many)]
    others = [
        replace(caller, background=False, at_s=caller.at_s + 4.0 * again)
        for caller in scenario.callers
        for again in range(5)
    ]
    line = Queue(1000, Costs(SECONDS), scenario.lanes, scenario.ahead)
    simulation = Simulation(line, SECONDS.__getitem__).play(behind + others)
    assert simulation.most_owed_s <= SECONDS[1] + BACKGROUND_SHARE * SECONDS[8]


# Against an oracle


def oracle(callers: Sequence[Caller], lanes: int) -> list[float]:
    """When each would be done by the plainest server that there is.

    It lets everybody in, and as soon as a lane is free it runs as many as fit, the earliest deadline first.
    """
    coming = sorted(range(len(callers)), key=lambda key: callers[key].at_s, reverse=True)
    waiting: list[tuple[float, int]] = []
    free = [0.0] * lanes
    done = [0.0] * len(callers)
    while coming or waiting:
        now = heapq.heappop(free)
        if not waiting:
            now = max(now, callers[coming[-1]].at_s)
        while coming and callers[coming[-1]].at_s <= now:
            key = coming.pop()
            heapq.heappush(waiting, (callers[key].at_s + callers[key].patience_s, key))
        run = [heapq.heappop(waiting)[1] for _ in range(min(len(waiting), 8))]
        now += Costs(SECONDS).seconds(len(run))
        heapq.heappush(free, now)
        for key in run:
            done[key] = now
    return done


def met_by_the_oracle(callers: Sequence[Caller], lanes: int, spare_s: float) -> list[Caller]:
    """Some of the callers, whom alone it serves so many seconds before their deadlines, or earlier."""
    while True:
        done = zip(callers, oracle(callers, lanes), strict=True)
        met = [each for each, done_s in done if done_s + spare_s <= each.at_s + each.patience_s]
        if len(met) == len(callers):
            return met
        callers = met


@given(
    st.lists(st.builds(Caller, at_s=seconds_up_to(8.0), patience_s=seconds_up_to(8.0)), max_size=60),
    st.integers(1, 3),
    st.integers(0, 1),
)
@settings(deadline=None, derandomize=True, max_examples=500)
def test_whom_an_oracle_meets_a_run_before_the_deadline_is_met(callers: list[Caller], lanes: int, ahead: int) -> None:
    """A run, because the door reckons with full ones, and because one that was handed over ahead takes in no more."""
    callers = met_by_the_oracle(callers, lanes, spare_s=SECONDS[8])
    outcomes = Simulation(Queue(1000, Costs(SECONDS), lanes, ahead), SECONDS.__getitem__).play(callers).outcomes
    assert [outcomes[key] for key in range(len(callers))] == [["done"]] * len(callers)


# Who comes back


@given(
    st.integers(1, 3),
    st.integers(1, 30),
    st.lists(seconds_up_to(6.0), min_size=1, max_size=50),
    st.integers(6, 40),
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
