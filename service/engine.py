"""The engine process: takes pictures from the HTTP workers, batches them, runs them on its device, and answers."""

import asyncio
import contextlib
import functools
import signal
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from setproctitle import setproctitle

from service import metrics
from service.batching import Batch, Job, Queue, halves
from service.costs import Costs
from service.device import Device, DeviceFault, DeviceMissing, OutOfMemory, load_classifier
from service.logs import logger
from service.process import REFUSED
from service.settings import Settings
from service.wire import Answer, Channel, Kind, ModelCard, Order, Outcome, Pulse, Slab

T = TypeVar("T")
Scores = NDArray[np.float32]
LENGTH = struct.Struct("<I")
PULSE_S = 1.0
PROBE_S = 15.0
"""How long the device may do nothing before a known picture shows that it still can."""
PROBE_SHARE = 0.01
"""At most so much of the device's time goes into probes."""
HANDSHAKE_S = 5.0


class Runner(Protocol):
    """What the engine needs of a device."""

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int) -> NDArray[np.float32]: ...

    def probe(self) -> None: ...


class Worker:
    """An HTTP worker, as the engine sees it."""

    def __init__(self, slab: Slab, channel: Channel) -> None:
        self.slab = slab
        self.channel = channel


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job's picture lies: its identity."""

    worker: Worker
    slot: int


class Engine:
    """Serves workers from one device until something it cannot mend happens; then ``serve`` raises."""

    def __init__(self, device: Runner, card: ModelCard, queue: Queue) -> None:
        self._device = device
        self._card = card
        self._queue = queue
        self._workers: set[Worker] = set()
        self._threads = ThreadPoolExecutor(queue.lanes, thread_name_prefix="lane")
        self._started: dict[Batch, float] = {}
        self._last_success_s = time.monotonic()
        self._pump_due = False

    async def serve(self, listener: socket.socket) -> None:
        """Accept workers and serve them, for ever."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._keep_pulse())
            while True:
                sock, _ = await loop.sock_accept(listener)
                self._tasks.create_task(self._serve_worker(sock))

    async def _serve_worker(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                worker = await self._welcome(sock)
        except (OSError, ValueError, TimeoutError) as error:
            logger.warning("turned a worker away", reason=repr(error))
            sock.close()
            return
        self._workers.add(worker)
        worker.channel.send(self._pulse().encode())
        await worker.channel.closed
        self._workers.discard(worker)
        for slot in range(worker.slab.slots):
            self._queue.cancel(Place(worker, slot))
        logger.info("a worker has left", workers=len(self._workers))

    async def _welcome(self, sock: socket.socket) -> Worker:
        """Show the card, take the slab, and listen to the worker's orders."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        body = self._card.encode()
        await loop.sock_sendall(sock, LENGTH.pack(len(body)) + body)
        await _readable(sock)
        header, descriptors, _, _ = socket.recv_fds(sock, LENGTH.size, maxfds=1)
        if len(header) != LENGTH.size or not descriptors:
            raise ConnectionError("no slab came")
        (slots,) = LENGTH.unpack(header)
        slab = Slab(descriptors[0], slots, self._card)

        def receive(message: bytes) -> None:
            self._ordered(worker, Order.decode(message))

        _, channel = await loop.create_unix_connection(lambda: Channel(Order.FORMAT.size, receive), sock=sock)
        worker = Worker(slab, channel)
        return worker

    def _ordered(self, worker: Worker, order: Order) -> None:
        place = Place(worker, order.slot)
        if order.kind is Kind.CANCEL:
            if self._queue.cancel(place):
                self._answer(place, Outcome.CANCELLED)
            return
        refusal = self._queue.submit(Job(place, order.arrival_s, order.deadline_s), time.monotonic())
        if refusal:
            self._answer(place, Outcome.REFUSED, retry_after_s=refusal.retry_after_s)
        elif not self._pump_due:
            # at the end of this turn of the loop: what came with the same read goes into the same run
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Do what the queue says is next."""
        self._pump_due = False
        now = time.monotonic()
        for job in self._queue.expire(now):
            self._answer(job.key, Outcome.EXPIRED)
        while batch := self._queue.take(now):
            self._started[batch] = now
            self._tasks.create_task(self._run(batch))
        metrics.queue_depth.set(self._queue.depth)

    async def _run(self, batch: Batch) -> None:
        """One run on the device, from the batch to its answers."""
        started_s = time.monotonic()
        scores, whole = await self._score(batch.jobs)
        device_s = time.monotonic() - started_s
        for job, row in zip(batch.jobs, scores, strict=True):
            place, outcome = job.key, Outcome.FAILED
            if row is not None:
                place.worker.slab.scores[place.slot] = row
                outcome = Outcome.OK
            queue_s = started_s - job.arrival_s
            self._answer(place, outcome, batch_size=len(batch.jobs), queue_s=queue_s, device_s=device_s)
        del self._started[batch]
        self._queue.finished(batch, device_s if whole else None)
        self._pump()

    async def _score(self, jobs: tuple[Job, ...]) -> tuple[list[Scores | None], bool]:
        """The scores of each job's picture, and whether one run gave them all.

        A run that raises is done again by halves, until the culprit stands alone; its scores are None.
        """
        size = self._queue.costs.padded_size(len(jobs))
        try:
            return await self._on_device(jobs, size), True
        except DeviceFault:
            raise
        except OutOfMemory:
            self._queue.costs.too_large(size)
            logger.warning("out of device memory", batch_size=size, largest_now=self._queue.costs.largest)
        except Exception:
            logger.warning("a run raised", pictures=len(jobs), exc_info=True)
        if len(jobs) == 1:
            return [None], False
        first, second = halves(jobs)
        return (await self._score(first))[0] + (await self._score(second))[0], False

    async def _on_device(self, jobs: tuple[Job, ...], size: int) -> list[Scores | None]:
        pictures = [job.key.worker.slab.pixels[job.key.slot] for job in jobs]
        rows = await self._in_thread(functools.partial(self._device.run, pictures, size))
        if len(rows) != len(jobs):
            raise ValueError(f"{len(jobs)} pictures gave {len(rows)} rows of scores")
        metrics.batches.inc()
        metrics.pictures.inc(len(jobs))
        metrics.batch_size.observe(len(jobs))
        metrics.padded_places.inc(size - len(jobs))
        return [row if np.isfinite(row).all() else None for row in rows]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        result = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._last_success_s = time.monotonic()
        return result

    def _answer(self, place: Place, outcome: Outcome, **figures: Any) -> None:
        place.worker.channel.send(Answer(outcome, place.slot, **figures).encode())

    async def _keep_pulse(self) -> None:
        """Tell the workers every second how the engine is; when the device has long done nothing, see that it can."""
        probe: asyncio.Task[None] | None = None
        while True:
            await asyncio.sleep(PULSE_S)
            pulse = self._pulse().encode()
            for worker in self._workers:
                worker.channel.send(pulse)
            if not self._started and self._since_success_s() > self._probe_every_s() and (not probe or probe.done()):
                probe = self._tasks.create_task(self._probe())

    async def _probe(self) -> None:
        """See that the device still can, and what it costs now: after a slow spell nothing else might tell."""
        started_s = time.monotonic()
        await self._in_thread(self._device.probe)
        self._queue.costs.learn(1, time.monotonic() - started_s)

    def _pulse(self) -> Pulse:
        now = time.monotonic()
        running_s = max((now - started for started in self._started.values()), default=0.0)
        since_success_s = self._since_success_s()
        return Pulse(
            healthy=max(running_s, since_success_s) < 3 * self._probe_every_s(),
            depth=self._queue.depth,
            predicted_wait_s=self._queue.predicted_wait_s(now),
            running_s=running_s,
            since_success_s=since_success_s,
        )

    def _since_success_s(self) -> float:
        return time.monotonic() - self._last_success_s

    def _probe_every_s(self) -> float:
        return max(PROBE_S, self._queue.costs.seconds(1) / PROBE_SHARE)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def main(orders: dict[str, Any]) -> None:
    """Load the model, warm it up, and serve until told to stop; ``orders`` are the parent's.

    Raises:
        SystemExit: it cannot be done as it is set up, for a reason that is logged.
    """
    settings = Settings.model_validate(orders["settings"])
    try:
        device, card, queue = prepare(settings)
    except (DeviceMissing, OutOfMemory, OSError, ValueError) as error:
        logger.critical("cannot start", reason=str(error))
        raise SystemExit(REFUSED) from None
    setproctitle(f"volo: engine {card.device}")
    engine = Engine(device, card, queue)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_until_terminated(engine.serve(socket.socket(fileno=orders["listener"]))))


def prepare(settings: Settings) -> tuple[Device, ModelCard, Queue]:
    """The model on its device, warm; what workers are told of it; and an empty queue that knows its costs."""
    started_s = time.monotonic()
    classifier = load_classifier(settings)
    device = Device(classifier, settings.max_batch, patience_s=settings.timeout_s / 4)
    costs = Costs(device.warm_up())
    card = ModelCard(
        classifier.name, str(classifier.device), classifier.image_size, classifier.crop_pct, classifier.labels
    )
    logger.info(
        "model ready",
        model=card.model,
        device=card.device,
        in_s=round(time.monotonic() - started_s, 2),
        cost_ms={size: round(costs.seconds(size) * 1e3, 1) for size in costs.ladder},
    )
    return device, card, Queue(settings.queue_limit, costs, device.lanes)


async def _until_terminated(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await work
