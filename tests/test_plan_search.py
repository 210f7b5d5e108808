import math
from dataclasses import replace

import pytest
from cost_tables import RUNS, table

from service.bench.tables import CostTable
from service.plan.arrivals import Arrivals, Bursty, Poisson
from service.plan.search import Demand, Plan, Planner

CAPACITY = 8 / RUNS[8]
DEMAND = Demand(
    rate=2.5 * CAPACITY,
    slo_ms=100.0,
    workers=None,
    worker_busy=0.7,
    queue_limit=256,
    timeout_s=10.0,
    seconds=5.0,
    seed=0,
)


def planned(
    demand: Demand, costs: CostTable | None = None, arrivals: Arrivals | None = None, devices: int | None = None
) -> Plan | None:
    return Planner(costs or table(), demand, lambda _: None).plan(arrivals or Poisson(), devices)


def test_the_fewest_devices_are_found_that_hold() -> None:
    plan = planned(DEMAND)
    assert plan is not None
    fewer = planned(DEMAND, devices=plan.devices - 1)
    assert plan.holds
    assert fewer is not None
    assert not fewer.holds
    assert plan.devices == 3


def test_a_plan_breaks_above_the_rate_it_is_for_and_below_what_the_devices_can_do() -> None:
    plan = planned(DEMAND)
    assert plan is not None
    assert DEMAND.rate <= plan.holds_up_to < plan.breaks.rate <= 1.06 * plan.holds_up_to
    assert plan.holds_up_to <= 1.05 * plan.devices * CAPACITY


@pytest.mark.parametrize("share", [0.8, 0.9, 0.95, 0.99])
def test_a_plan_that_holds_does_so_up_to_no_less_than_it_is_for(share: float) -> None:
    most = planned(DEMAND, devices=3)
    assert most is not None
    plan = planned(replace(DEMAND, rate=share * most.holds_up_to), devices=3)
    assert plan is not None
    assert plan.holds
    assert plan.holds_up_to >= share * most.holds_up_to


def test_devices_that_are_too_few_break_below_the_rate() -> None:
    plan = planned(DEMAND, devices=2)
    assert plan is not None
    assert not plan.holds
    assert 0.5 * 2 * CAPACITY < plan.holds_up_to < DEMAND.rate


def test_what_is_too_slow_for_more_breaks_first() -> None:
    costs = table(worker_cpu_seconds_per_picture=0.010)
    few, many = (planned(replace(DEMAND, workers=workers), costs, devices=3) for workers in (1, 16))
    assert few is not None
    assert many is not None
    assert (few.breaks.first, many.breaks.first) == ("HTTP workers", "device")
    loop = planned(DEMAND, table(engine_cpu_seconds_per_picture=0.004), devices=3)
    assert loop is not None
    assert loop.breaks.first == "event loop"


def test_a_latency_below_a_lone_run_cannot_be_had() -> None:
    assert planned(replace(DEMAND, slo_ms=9.0)) is None


def test_bursts_take_more_devices_and_workers() -> None:
    costs = table(worker_cpu_seconds_per_picture=0.002)
    steady, bursty = (planned(DEMAND, costs, kind) for kind in (Poisson(), Bursty(factor=3.0)))
    assert steady is not None
    assert bursty is not None
    assert bursty.devices > steady.devices
    assert bursty.devices * bursty.workers > steady.devices * steady.workers


def test_workers_are_as_many_as_are_busy_as_they_may_be() -> None:
    costs = table(worker_cpu_seconds_per_picture=0.010)
    plan = planned(DEMAND, costs)
    assert plan is not None
    assert plan.workers == math.ceil(DEMAND.rate / plan.devices * 0.010 / 0.7)
    assert plan.outcome.workers_busy == pytest.approx(0.7, rel=0.1)


def test_workers_may_be_given() -> None:
    plan = planned(replace(DEMAND, workers=2), table(worker_cpu_seconds_per_picture=0.001))
    assert plan is not None
    assert plan.workers == 2


def test_too_few_workers_break_what_the_devices_would_hold() -> None:
    plan = planned(replace(DEMAND, workers=1), table(worker_cpu_seconds_per_picture=0.010), devices=3)
    assert plan is not None
    assert not plan.holds
    assert plan.outcome.workers_busy > 0.95
