"""Whether the simulation is right: the same arrivals in it, and sent to the real service on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.zoo import Model, resolve
from service.bench import child, cpu, overhead, pictures
from service.bench.client import Target
from service.bench.crew import Open
from service.bench.figures import Figures
from service.bench.loops import arrivals
from service.bench.progress import Tell
from service.bench.samples import percentile
from service.bench.stand import Stand, built
from service.bench.tables import CostTable
from service.plan.simulation import Replica, simulate
from service.settings import Settings, cores

TOLERANCE = 0.2
"""Of the measured p99: by so much the simulated one may be off."""
_WARM_UP_S = 2.0


@dataclass(frozen=True)
class Comparison:
    """One load, simulated and measured, and the cores that other programs have taken meanwhile."""

    load: float
    rate: float
    simulated_p50_ms: float
    simulated_p99_ms: float
    others_cores: float
    measured: Figures

    @property
    def off(self) -> float:
        """By which part of the measured p99 the simulated one is too high."""
        return self.simulated_p99_ms / self.measured.p99_ms - 1

    @property
    def agrees(self) -> bool:
        """Whether that is little; where nothing was answered, nothing agrees."""
        return abs(self.off) <= TOLERANCE


def compare(
    costs: CostTable, settings: Settings, loads: Sequence[float], seconds: float, folder: Path | None, tell: Tell
) -> list[Comparison]:
    """Put Poisson loads, as shares of the capacity by the table, on a service of this model on this device.

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
    with child.serving([part for name, value in options.items() for part in (f"--{name}", str(value))]) as own:
        around = (settings.http_workers, settings.queue_limit, settings.timeout_s, settings.decode_threads)
        replica = Replica(costs, *around)
        return _compare(replica, own.url, own.pid, loads, seconds, pictures.read(folder), tell)


def compare_paced(
    costs: CostTable, loads: Sequence[float], seconds: float, folder: Path | None, tell: Tell
) -> list[Comparison]:
    """The same with one worker and an engine whose device only sleeps, for as long as the table says.

    So that what is around the device can be checked for one that is not here, and on a machine that is not quiet. It
    is a device beside the processor, whatever the table was measured on.

    Raises:
        OSError, ValueError: it cannot be done; the message says why.
    """
    costs = costs.model_copy(update={"device": "cuda", "spread": (1.0,), "alone_seconds_by_batch_size": {}})
    view = resolve(costs.model)
    if not isinstance(view, Model):
        raise ValueError(f"{costs.model} is not in the catalogue, which says how it sees pictures")
    card = replace(overhead.nothing_card(view.image_size, len(view.labels)), crop_pct=view.crop_pct)
    with overhead.serving(card, costs) as url:
        replica = Replica(costs, 1, overhead.QUEUE_LIMIT, Settings().timeout_s, decode_threads=cores())
        return _compare(replica, url, os.getpid(), loads, seconds, pictures.read(folder), tell)


def _compare(
    replica: Replica, url: str, pid: int, loads: Sequence[float], seconds: float, bodies: Sequence[bytes], tell: Tell
) -> list[Comparison]:
    target = Target(f"{url}/predict", bodies, {"Content-Type": "image/jpeg"}, b'"predictions"')
    opened = [Open(load * replica.costs.capacity) for load in loads]
    with built(target, 1, seconds, _WARM_UP_S, pid, tell) as stand:
        return [_beside(replica, load, each, stand) for load, each in zip(loads, opened, strict=True)]


def _beside(replica: Replica, load: float, opened: Open, stand: Stand) -> Comparison:
    """What is measured, and what the simulation makes of the very requests that were sent."""
    before_s, start_s = cpu.machine_seconds(), time.monotonic()
    measured = stand.measure(opened)
    machine_cores = (cpu.machine_seconds() - before_s) / (time.monotonic() - start_s)
    others = max(0.0, machine_cores - sum(measured.server.cores.values()) - measured.generator_cores)
    only = opened.share(0, 1)
    times = arrivals(only.rate, _WARM_UP_S + measured.seconds, only.seed)
    outcome = simulate(_with_generator(replica, measured), times.tolist())
    latencies_s = outcome.latencies_s[(times >= _WARM_UP_S) & ~np.isnan(outcome.latencies_s)]
    p50_ms, p99_ms = (percentile(latencies_s, percent) * 1e3 for percent in (50, 99))
    return Comparison(load, opened.rate, p50_ms, p99_ms, others, measured)


def _with_generator(replica: Replica, measured: Figures) -> Replica:
    """The load generator takes its part of shared cores too."""
    if not (replica.costs.shares_cores and measured.answered):
        return replica
    generator_s = measured.generator_cores / measured.answered
    around_s = replica.costs.worker_cpu_seconds_per_picture + generator_s
    return replace(replica, costs=replica.costs.model_copy(update={"worker_cpu_seconds_per_picture": around_s}))
