"""How many devices and workers it takes, and at which rate these break."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from service.bench.search import highest_rate
from service.bench.tables import CostTable
from service.plan.arrivals import Arrivals
from service.plan.simulation import Outcome, Replica, Stage, holds, simulate, slowest_stage

_FEWEST = 1000
"""Requests of a simulation, on average: fewer would tell nothing of one in a hundred."""
_GROWTH = 1.5
_MORE = 1.2
"""Times the rate that is asked for: the next to try, if that one holds."""
_HOPELESS = 16
"""Times the devices that the mean rate alone takes: where so many do not help, more do not either."""


@dataclass(frozen=True)
class Demand:
    """What is asked for, and how it is found out.

    Attributes:
        rate: requests a second, of all devices together.
        slo_ms: what the 99th percentile shall stay below.
        workers: for each device; None for as many as are ``worker_busy`` of the time at the arrivals' peak.
        queue_limit, timeout_s: settings of the service.
        seconds: of each simulation, or more where there are few requests.
    """

    rate: float
    slo_ms: float
    workers: int | None
    worker_busy: float
    queue_limit: int
    timeout_s: float
    seconds: float
    seed: int


@dataclass(frozen=True)
class Break:
    """The lowest rate that was found not to hold, what comes of it, and where requests wait too long then."""

    rate: float
    outcome: Outcome
    first: Stage


@dataclass(frozen=True)
class Plan:
    """So many devices with so many workers each, what comes of it, the highest rate that holds, and what breaks it."""

    arrivals: Arrivals
    devices: int
    workers: int
    outcome: Outcome
    holds: bool
    holds_up_to: float
    breaks: Break


class Planner:
    """Makes plans for one demand.

    Devices are replicas behind a balancer that sends each request to one of them at random: each then has its part of
    the rate, whatever the others do, so that one of them is simulated for all. A balancer that knows who is idle does
    better.
    """

    def __init__(self, costs: CostTable, demand: Demand, tell: Callable[[str], None]) -> None:
        self._costs = costs
        self._demand = demand
        self._tell = tell

    def plan(self, arrivals: Arrivals, devices: int | None = None) -> Plan | None:
        """A plan with these devices, or with the fewest that hold; None if no number of them does."""
        devices = devices or self._fewest(arrivals)
        if devices is None:
            return None
        demand, workers = self._demand, self._workers(arrivals, devices)
        replica = self._replica(workers)
        outcome = simulate(replica, self._times(arrivals, demand.rate, devices), demand.seed)
        hold = outcome.holds(demand.slo_ms)
        too_high: list[float] = []

        def enough(rate: float) -> bool:
            if not (well := holds(replica, self._times(arrivals, rate, devices), demand.slo_ms, demand.seed)):
                too_high.append(rate)
            return well

        first = min(self._costs.capacity * devices, demand.rate * (_MORE if hold else 1))
        up_to = highest_rate(enough, first, known=demand.rate if hold else 0)
        beyond = simulate(replica, self._times(arrivals, too_high[-1], devices), demand.seed)
        breaks = Break(too_high[-1], beyond, slowest_stage(replica, beyond, demand.slo_ms))
        return Plan(arrivals, devices, workers, outcome, hold, up_to, breaks)

    def _fewest(self, arrivals: Arrivals) -> int | None:
        least = math.ceil(self._demand.rate / self._costs.capacity)
        too_few, enough = least - 1, least
        while not self._enough(arrivals, enough):
            if enough > _HOPELESS * least:
                return None
            too_few, enough = enough, math.ceil(enough * _GROWTH)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._enough(arrivals, middle):
                enough = middle
            else:
                too_few = middle
        return enough

    def _enough(self, arrivals: Arrivals, devices: int) -> bool:
        replica = self._replica(self._workers(arrivals, devices))
        times = self._times(arrivals, self._demand.rate, devices)
        return holds(replica, times, self._demand.slo_ms, self._demand.seed)

    def _workers(self, arrivals: Arrivals, devices: int) -> int:
        work = arrivals.peak * self._demand.rate / devices * self._costs.worker_cpu_seconds_per_picture
        return self._demand.workers or max(1, math.ceil(work / self._demand.worker_busy))

    def _replica(self, workers: int) -> Replica:
        return Replica(self._costs, workers, self._demand.queue_limit, self._demand.timeout_s)

    def _times(self, arrivals: Arrivals, rate: float, devices: int) -> list[float]:
        """When requests come to one of the devices."""
        self._tell(f"{arrivals.name} arrivals, {rate:.4g} a second on {devices}")
        each = rate / devices
        times: list[float] = arrivals.times(each, max(self._demand.seconds, _FEWEST / each), self._demand.seed).tolist()
        return times
