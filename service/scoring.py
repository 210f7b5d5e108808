"""What becomes of a batch's pictures: runs on the device, done again by halves where one fails."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import reduce
from operator import or_
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batching import halves
from service.costs import Costs
from service.device import DeviceFault, OutOfMemory
from service.line import Job
from service.logs import logger
from service.metrics import OfEngine
from service.outputs import Outputs, Wants
from service.wire import Outcome
from service.workers import Place

T = TypeVar("T")
Verdicts = dict[Place, Outputs | Outcome]
"""What the model says of each picture, or why it says nothing."""


class Runner(Protocol):
    """What the engine needs of a device; see ``device.Device``."""

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, alone: bool, wants: Wants) -> Outputs: ...

    def probe(self) -> None: ...

    def memory(self) -> tuple[int, int]: ...


class Scorer:
    """Runs batches on the device, ``lanes`` at once, each in a thread of its own, which ``begin`` is called in first.

    ``leaving`` are places in a batch under way whose callers have left; the engine puts them there. Whoever is still
    to be done again then is not.
    """

    def __init__(
        self, device: Runner, classes: int, costs: Costs, lanes: int, meter: OfEngine, begin: Callable[[], None] | None
    ) -> None:
        self.leaving: set[Place] = set()
        self.last_success_s = time.monotonic()
        self._device = device
        self._classes = classes
        self._costs = costs
        self._metrics = meter
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="lane", initializer=begin)
        self._suspecting = asyncio.Lock()
        meter.runs_at_most(costs.largest)

    async def probe(self) -> None:
        """Have a known picture get its known answer; raise DeviceFault if it does not."""
        await self._in_thread(self._device.probe)
        self.last_success_s = time.monotonic()

    async def score(self, jobs: tuple[Job, ...], alone: bool = False) -> tuple[Verdicts, bool, float]:
        """What becomes of each job's picture, whether one run gave it all, and when the last one ended.

        A run that raises is done again by halves, until the culprit stands alone; its picture has failed. Suspects
        stand alone from the start, on the whole device, so that an engine's death proves who did it.

        Raises:
            DeviceFault: the device is of no use any more.
        """
        size = self._costs.padded_size(len(jobs))
        try:
            if self._may_run_together(jobs, size):
                verdicts, ended_s = await self._on_device(jobs, size, alone)
                return verdicts, True, ended_s
        except DeviceFault:
            raise
        except OutOfMemory as error:
            self._shrink(size, error)
        except Exception as error:
            culprit = len(jobs) == 1
            logger.warning("a run raised", pictures=len(jobs), reason=repr(error), exc_info=culprit)
            if culprit:
                return {jobs[0].key: Outcome.FAILED}, False, time.monotonic()
        first, second = halves(jobs)
        some, some_ended_s = await self._score_who_waits(first)
        others, others_ended_s = await self._score_who_waits(second)
        return some | others, False, max(some_ended_s, others_ended_s)

    async def _score_who_waits(self, jobs: tuple[Job, ...]) -> tuple[Verdicts, float]:
        """The same, but for those who have left, or cannot be met any more."""
        finish_s = time.monotonic() + self._costs.seconds(1)
        dropped: Verdicts = {job.key: why for job in jobs if (why := self._why_not(job, finish_s))}
        jobs = tuple(job for job in jobs if job.key not in dropped)
        if not jobs:
            return dropped, time.monotonic()
        verdicts, _, ended_s = await self.score(jobs)
        return dropped | verdicts, ended_s

    def _why_not(self, job: Job, finish_s: float) -> Outcome | None:
        if job.key in self.leaving:
            self._metrics.cancelled.inc()
            return Outcome.CANCELLED
        if job.deadline_s < finish_s:
            self._metrics.expired.inc()
            return Outcome.EXPIRED
        return None

    @staticmethod
    def _may_run_together(jobs: tuple[Job, ...], size: int) -> bool:
        # the largest run may have become smaller since these were put together
        return len(jobs) == 1 or (len(jobs) <= size and not any(job.key.suspect for job in jobs))

    def _shrink(self, size: int, error: OutOfMemory) -> None:
        if size == self._costs.ladder[0]:
            raise DeviceFault(f"There is no memory for a run of {size}, and none is smaller.") from error
        self._costs.too_large(size)
        self._metrics.runs_at_most(self._costs.largest)
        logger.warning("out of device memory", batch_size=size, largest_now=self._costs.largest)

    async def _on_device(self, jobs: tuple[Job, ...], size: int, alone: bool) -> tuple[Verdicts, float]:
        places = [job.key for job in jobs]
        pictures = [place.pixels for place in places]
        wants = reduce(or_, {place.wants for place in places})  # of all: more for one costs little for the others

        def run() -> tuple[Outputs, float]:  # and the end now: the loop may be late to hear of it
            return self._device.run(pictures, size, alone, wants), time.monotonic()

        async with self._suspecting if places[0].suspect else nullcontext():
            with _marked(places):
                outputs, ended_s = await self._in_thread(run)
        if outputs.logits.shape != (len(jobs), self._classes):
            raise ValueError(f"{len(jobs)} pictures gave logits of the shape {outputs.logits.shape}")
        self._metrics.ran(len(jobs), size)
        sound = [bool(np.isfinite(logits).all()) for logits in outputs.logits]
        if any(sound):
            self.last_success_s = time.monotonic()
        return {place: outputs.of(row) if sound[row] else Outcome.FAILED for row, place in enumerate(places)}, ended_s

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@contextmanager
def _marked(places: Sequence[Place]) -> Iterator[None]:
    """Marked as on the device; if that is the engine's end, for whoever looks into it afterwards."""
    for place in places:
        place.running(True)
    try:
        yield
    except (DeviceFault, asyncio.CancelledError):
        raise
    except Exception:
        _unmark(places)
        raise
    _unmark(places)


def _unmark(places: Sequence[Place]) -> None:
    for place in places:
        place.running(False)
