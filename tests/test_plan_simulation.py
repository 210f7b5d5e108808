"""The simulation that `volo plan` rests on, against what is known of queues."""

import math

import numpy as np
import pytest
from cost_tables import RUNS, table
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bench.tables import CostTable
from service.plan.arrivals import Arrivals, Bursty, Poisson
from service.plan.cores import Cores, Server
from service.plan.simulation import Outcome, Replica, holds, simulate

reproducible = settings(deadline=None, derandomize=True, max_examples=40)


def replica(costs: CostTable, workers: int = 1, queue_limit: int = 10_000, timeout_s: float = 1e6) -> Replica:
    return Replica(costs, workers, queue_limit, timeout_s)


def played(where: Replica, rate: float, seconds: float, arrivals: Arrivals | None = None, seed: int = 1) -> Outcome:
    return simulate(where, (arrivals or Poisson()).times(rate, seconds, seed).tolist(), seed)


# What is known


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_runs_of_one_wait_as_long_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: the mean wait is load * s / (2 (1 - load)). Kleinrock, Queueing Systems I (1975), section 5.6."""
    run_s = 0.01
    outcome = played(replica(table(seconds_by_batch_size={1: run_s})), load / run_s, seconds=300)
    expected_s = run_s + load * run_s / (2 * (1 - load))
    assert outcome.latencies_s.mean() == pytest.approx(expected_s, rel=0.05)
    assert outcome.device_busy == pytest.approx(load, rel=0.03)


def test_runs_that_differ_wait_as_long_as_pollaczek_and_khinchine_say() -> None:
    """M/G/1: the mean wait is rate * E[s²] / (2 (1 - load)); here half the runs take 0.4 s, and half 1.6 s."""
    outcome = played(replica(table(seconds_by_batch_size={1: 1.0}, spread=(0.4, 1.6))), 0.6, seconds=20_000)
    expected_s = 1 + 0.6 * (0.4**2 + 1.6**2) / 2 / (2 * (1 - 0.6))
    assert outcome.latencies_s.mean() == pytest.approx(expected_s, rel=0.05)


def test_a_lone_request_takes_its_worker_the_loop_and_a_run_of_one() -> None:
    costs = table(worker_cpu_seconds_per_picture=0.004, engine_cpu_seconds_per_picture=0.001)
    assert simulate(replica(costs), [5.0]).latencies_s == pytest.approx([0.004 + 0.001 + 0.010])


def test_an_idle_device_takes_what_it_takes_when_idle() -> None:
    costs = table(alone_seconds_by_batch_size={1: 0.013}, ahead=1)
    assert simulate(replica(costs), [0.0, 1.0]).latencies_s == pytest.approx([0.013, 0.013])


def test_a_full_run_that_is_handed_over_ahead_finds_no_idle_device() -> None:
    costs = table(alone_seconds_by_batch_size={1: 0.013, 8: 0.030}, ahead=1)
    outcome = simulate(replica(costs), [0.0] * 9)
    assert outcome.latencies_s.max() == pytest.approx(0.013 + 0.024)


def test_what_comes_during_a_run_is_the_next_batch() -> None:
    outcome = simulate(replica(table()), [0.0, 0.001, 0.002])
    assert outcome.latencies_s == pytest.approx([0.010, 0.010 + 0.012 - 0.001, 0.010 + 0.012 - 0.002])
    assert outcome.runs == {1: 1, 2: 1}
    assert outcome.mean_batch == 1.5


def test_a_processor_runs_a_batch_on_each_of_its_lanes() -> None:
    costs = table(device="cpu", lanes=2, padded=False)
    assert simulate(replica(costs), [0.0, 0.0]).latencies_s == pytest.approx([0.010, 0.010])


def test_on_a_processor_workers_and_lanes_share_the_cores() -> None:
    costs = table(device="cpu", padded=False, worker_cpu_seconds_per_picture=0.004)
    # the first run is half done by 0.009: from 0.005 on a worker has had half of the only core for 0.008
    outcome = simulate(replica(costs), [0.0, 0.005])
    assert outcome.latencies_s[0] == pytest.approx(0.004 + 0.010 + 0.004)


def test_a_run_that_has_all_cores_to_itself_keeps_all_of_them_busy() -> None:
    costs = table(
        device="cpu",
        lanes=2,
        padded=False,
        alone_seconds_by_batch_size={1: 0.006},
        alone_threads=2,
        worker_cpu_seconds_per_picture=0.004,
    )
    # from 0.004 on a worker and two threads share two cores until 0.010, then a run of one thread and they, until 0.013
    outcome = simulate(replica(costs), [0.0, 0.004])
    assert outcome.latencies_s == pytest.approx([0.013, 0.021 - 0.004])


# What must hold of any load


loads = st.builds(
    lambda rate, seed, bursty, workers, limit, timeout_s, costs: played(
        Replica(costs, workers, limit, timeout_s), rate, 3.0, Bursty() if bursty else Poisson(), seed
    ),
    rate=st.floats(1, 600),
    seed=st.integers(0, 99),
    bursty=st.booleans(),
    workers=st.integers(1, 3),
    limit=st.integers(1, 64),
    timeout_s=st.floats(0.02, 1.0),
    costs=st.builds(
        lambda device, ahead, spread, worker_s: table(
            device="cpu" if device else "cuda",
            lanes=2 if device else 1,
            ahead=0 if device else ahead,
            padded=not device,
            spread=spread,
            worker_cpu_seconds_per_picture=worker_s,
            engine_cpu_seconds_per_picture=worker_s / 10,
        ),
        device=st.booleans(),
        ahead=st.integers(0, 1),
        spread=st.sampled_from([(1.0,), (0.8, 1.2), (0.9, 0.9, 1.5)]),
        worker_s=st.floats(0, 0.01),
    ),
)


@given(loads)
@reproducible
def test_no_request_is_lost(outcome: Outcome) -> None:
    assert outcome.pictures_run + outcome.refused == len(outcome.latencies_s)
    assert 0 <= outcome.expired <= outcome.refused


@given(loads)
@reproducible
def test_nobody_is_busy_for_more_than_all_of_the_time(outcome: Outcome) -> None:
    assert 0 <= outcome.device_busy <= 1 + 1e-9
    assert 0 <= outcome.workers_busy <= 1 + 1e-9


@given(loads)
@reproducible
def test_nobody_is_answered_before_a_run_could_be_over(outcome: Outcome) -> None:
    answered = outcome.latencies_s[~np.isnan(outcome.latencies_s)]
    assert (answered >= 0.8 * RUNS[1] - 1e-9).all()


@given(st.floats(50, 250), st.integers(0, 20))
@reproducible
def test_half_the_rate_is_never_much_slower(rate: float, seed: int) -> None:
    """Of twice the devices each has half the rate. Less load makes smaller batches, whose pictures cost more: hence
    a run of tolerance."""
    one, two = (played(replica(table()), each, 5.0, seed=seed) for each in (rate, rate / 2))
    assert two.percentile_ms(99) <= one.percentile_ms(99) + RUNS[1] * 1e3


def test_the_same_seed_gives_the_same_figures() -> None:
    costs = table(spread=(0.9, 1.1), worker_cpu_seconds_per_picture=0.001)
    first, again = (played(replica(costs, workers=2), 100, 2.0) for _ in range(2))
    assert (first.latencies_s == again.latencies_s).all()


def test_what_cannot_be_done_is_refused() -> None:
    outcome = played(replica(table(), queue_limit=16), rate=1000, seconds=2.0)
    assert outcome.refused > 0
    assert not outcome.holds(slo_ms=1e9)
    assert outcome.pictures_run / outcome.seconds == pytest.approx(8 / RUNS[8], rel=0.05)


def test_nothing_holds_that_is_slower_than_asked() -> None:
    outcome = simulate(replica(table()), [0.0, 1.0])
    assert outcome.holds(slo_ms=10.1)
    assert not outcome.holds(slo_ms=10.0)


@given(st.floats(50, 400), st.floats(11, 60), st.integers(0, 20))
@reproducible
def test_whether_it_holds_does_not_depend_on_giving_up_early(rate: float, slo_ms: float, seed: int) -> None:
    where, times = replica(table(), queue_limit=64), Poisson().times(rate, 3.0, seed).tolist()
    assert holds(where, times, slo_ms, seed) == simulate(where, times, seed).holds(slo_ms)


def test_no_requests_give_no_figures() -> None:
    outcome = simulate(replica(table()), [])
    assert math.isnan(outcome.percentile_ms(99))
    assert math.isnan(outcome.mean_batch)
    assert not outcome.holds(slo_ms=1.0)


# Cores


def test_more_tasks_than_cores_get_equal_shares() -> None:
    cores, ends = Cores(2), []
    for seconds in (1.0, 2.0, 3.0):
        cores.start(seconds, lambda: ends.append(cores.now))
    cores.pass_to(math.inf)
    # three at two thirds of the speed until 1.5; then each has a core
    assert ends == pytest.approx([1.5, 2.5, 3.5])


def test_a_task_that_comes_later_slows_those_that_are_there() -> None:
    cores, ends = Cores(1), []
    cores.start(1.0, lambda: ends.append(cores.now))
    cores.pass_to(0.5)
    cores.start(1.0, lambda: ends.append(cores.now))
    cores.pass_to(math.inf)
    assert ends == pytest.approx([1.5, 2.0])


def test_a_server_with_two_hands_does_two_things_at_once() -> None:
    cores, ends = Cores(math.inf), []
    server = Server(cores, 1.0, at_once=2)
    for _ in range(3):
        server.serve(lambda: ends.append(cores.now))
    cores.pass_to(math.inf)
    assert ends == [1.0, 1.0, 2.0]
    assert server.busy_s == 3.0


def test_a_server_does_one_thing_after_the_other() -> None:
    cores, ends = Cores(math.inf), []
    server = Server(cores, 1.0)
    server.serve(lambda: ends.append(("first", cores.now)))
    server.serve(lambda: ends.append(("second", cores.now)))
    cores.pass_to(10.0)
    assert ends == [("first", 1.0), ("second", 2.0)]
    assert server.busy_s == 2.0
    assert cores.now == 10.0
