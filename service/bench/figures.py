"""The figures of one step: drawn from all its requests, and from what the server says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from service.bench.crew import Closed, Open
from service.bench.samples import Samples, percentile

_BUSY = 0.9
"""Of a core: a generator that uses more of it cannot be trusted to send and to read in time."""
_LATE_MS = 2.0
_LATE_SHARE = 0.1
"""Requests sent later than both this and this part of the latency (all p99) spoil it."""


@dataclass(frozen=True)
class ServerFigures:
    """What the server says of one window, and what the system says of it; empty where nobody does.

    Attributes:
        mean_batch: pictures in a run of the model.
        stages: share of each stage in the time that requests spent in the server.
        cores: processors kept busy, by process.
    """

    mean_batch: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """One step. Rates are in requests a second, latencies those of good answers in milliseconds."""

    title: str
    load: str
    value: float
    seconds: float
    offered: float
    answered: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float
    errors: dict[str, int]
    generator_cores: float
    generators: int
    late_p99_ms: float
    server: ServerFigures

    @property
    def doubt(self) -> str:
        """Why the figures say more of the load generator than of the server; empty if they do not."""
        if self.generator_cores > _BUSY * self.generators:
            return f"{self.generator_cores:.1f} cores for {self.generators} processes"
        if self.late_p99_ms > max(_LATE_MS, _LATE_SHARE * self.p99_ms):
            return f"it sent requests {self.late_p99_ms:.1f} ms late (p99)"
        return ""


def draw(samples: Samples, load: Closed | Open, seconds: float, generators: int, server: ServerFigures) -> Figures:
    """The figures of a window of ``seconds``."""
    latencies_s = samples.latencies_s()
    p50, p90, p99, p99_9, slowest = (percentile(latencies_s, percent) * 1e3 for percent in (50, 90, 99, 99.9, 100))
    return Figures(
        title=load.title,
        load="closed" if isinstance(load, Closed) else "open",
        value=load.connections if isinstance(load, Closed) else load.rate,
        seconds=seconds,
        offered=float(np.count_nonzero((samples.due_s >= 0) & (samples.due_s < seconds))) / seconds,
        answered=samples.answered(seconds) / seconds,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p99_9_ms=p99_9,
        max_ms=slowest,
        errors=samples.errors(),
        generator_cores=samples.cpu_s / seconds,
        generators=generators,
        late_p99_ms=percentile(samples.lags_s(), 99) * 1e3,
        server=server,
    )
