"""The measuring stand: puts one load after the other on a server, and watches both sides meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from service.bench import cpu, scrape
from service.bench.client import Target
from service.bench.crew import Closed, Crew, Open, hired
from service.bench.figures import Figures, ServerFigures, draw
from service.bench.progress import Tell
from service.bench.samples import Samples

_TICK_S = 0.25


@dataclass(frozen=True)
class _Reading:
    """Both sides of the server at one time."""

    at_s: float
    metrics: scrape.Readings
    cpu_s: dict[str, float]


class Stand:
    """Measures one target with one crew; ``steps`` are the figures so far."""

    def __init__(
        self, crew: Crew, target: Target, generators: int, seconds: float, warm_up_s: float, pid: int | None, tell: Tell
    ) -> None:
        self._crew = crew
        self._url = target.url
        self._generators = generators
        self._seconds = seconds
        self._warm_up_s = warm_up_s
        self._pid = pid
        self._tell = tell
        self.steps: list[Figures] = []

    def measure(self, load: Closed | Open) -> Figures:
        """The figures of one load. Interrupted, it leaves in ``steps`` what there is."""
        start_s = self._crew.start(load, self._seconds, self._warm_up_s)
        before: _Reading | None = None
        try:
            self._wait(load, start_s, until_s=start_s)
            before = self._read()
            self._wait(load, start_s, until_s=start_s + self._seconds)
        except KeyboardInterrupt:
            self._crew.stop()
            samples = self._crew.finish()
            if before is not None:
                self._keep(samples, load, before, time.monotonic() - start_s)
            raise
        after = self._read()
        return self._keep(self._crew.finish(), load, before, self._seconds, after)

    def _keep(
        self, samples: Samples, load: Closed | Open, before: _Reading, seconds: float, after: _Reading | None = None
    ) -> Figures:
        server = self._server(before, after or self._read())
        self.steps.append(draw(samples, load, seconds, self._generators, server))
        return self.steps[-1]

    def _wait(self, load: Closed | Open, start_s: float, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            self._tell(load.title, 1 - (start_s + self._seconds - time.monotonic()) / (self._seconds + self._warm_up_s))
            time.sleep(min(left_s, _TICK_S))

    def _read(self) -> _Reading:
        used_s = cpu.tree_seconds(self._pid) if self._pid else {}
        return _Reading(time.monotonic(), scrape.read(self._url), used_s)

    def _server(self, before: _Reading, after: _Reading) -> ServerFigures:
        return ServerFigures(
            mean_batch=scrape.mean_batch(before.metrics, after.metrics),
            stages=scrape.stage_shares(before.metrics, after.metrics, urlsplit(self._url).path),
            cores=cpu.cores(before.cpu_s, after.cpu_s, after.at_s - before.at_s),
        )


@contextmanager
def built(
    target: Target, generators: int, seconds: float, warm_up_s: float, pid: int | None, tell: Tell
) -> Iterator[Stand]:
    """A stand with a crew of its own.

    Args:
        pid: the server's process, where its use of the processors is to be known.
    """
    with hired(target, generators) as crew:
        yield Stand(crew, target, generators, seconds, warm_up_s, pid, tell)
