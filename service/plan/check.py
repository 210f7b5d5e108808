"""Whether the simulation is right: the same arrivals in it, and sent to the real service on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.bench import child, pictures, scrape
from service.bench.client import Target
from service.bench.crew import Open
from service.bench.figures import Figures
from service.bench.loops import arrivals
from service.bench.progress import Tell
from service.bench.samples import percentile
from service.bench.stand import built
from service.bench.tables import CostTable
from service.plan.simulation import Replica, simulate
from service.settings import Settings

_WARM_UP_S = 2.0


@dataclass(frozen=True)
class Comparison:
    """One load, simulated and measured."""

    load: float
    rate: float
    simulated_p50_ms: float
    simulated_p99_ms: float
    simulated_batch: float
    measured: Figures

    @property
    def off(self) -> float:
        """By which part of the measured p99 the simulated one is too high."""
        return self.simulated_p99_ms / self.measured.p99_ms - 1


def compare(
    costs: CostTable, settings: Settings, loads: Sequence[float], seconds: float, folder: Path | None, tell: Tell
) -> list[Comparison]:
    """Put Poisson loads, as shares of the capacity by the table, on a service with these settings.

    Raises:
        CannotStart, OSError, ValueError: it cannot be done; the message says why.
    """
    options = {
        "model": settings.model,
        "device": costs.device,
        "precision": costs.precision,
        "workers": settings.http_workers,
        "max-batch": max(costs.seconds_by_batch_size),
        "queue-limit": settings.queue_limit,
        "timeout-s": settings.timeout_s,
    }
    bodies = pictures.read(folder)
    with child.serving([part for name, value in options.items() for part in (f"--{name}", str(value))]) as own:
        if not scrape.model(own.url):
            raise ValueError("the service does not say what it serves")
        target = Target(f"{own.url}/predict", bodies, {"Content-Type": "image/jpeg"}, b'"predictions"')
        with built(target, 1, seconds, _WARM_UP_S, own.pid, tell) as stand:
            return [_compare(costs, settings, load, stand.measure(_open(costs, load)), seconds) for load in loads]


def _open(costs: CostTable, load: float) -> Open:
    return Open(load * costs.capacity)


def _compare(costs: CostTable, settings: Settings, load: float, measured: Figures, seconds: float) -> Comparison:
    """What the simulation makes of the very requests that were sent."""
    opened = _open(costs, load).share(0, 1)
    times = arrivals(opened.rate, _WARM_UP_S + seconds, opened.seed)
    if costs.shares_cores and measured.answered:  # the load generator takes its part of the cores too
        generator_s = measured.generator_cores / measured.answered
        around_s = costs.worker_cpu_seconds_per_picture + generator_s
        costs = costs.model_copy(update={"worker_cpu_seconds_per_picture": around_s})
    replica = Replica(costs, settings.http_workers, settings.queue_limit, settings.timeout_s)
    outcome = simulate(replica, times.tolist())
    latencies_s = outcome.latencies_s[times >= _WARM_UP_S]
    latencies_s = latencies_s[~np.isnan(latencies_s)]
    p50_ms, p99_ms = (percentile(latencies_s, percent) * 1e3 for percent in (50, 99))
    return Comparison(load, opened.rate, p50_ms, p99_ms, outcome.mean_batch, measured)
