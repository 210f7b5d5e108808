"""The engine: takes pictures from the HTTP workers, batches them, runs them on its device, and answers."""

import asyncio
import socket
import time
from collections.abc import Callable

from service import metrics
from service.batching import Batch, Queue
from service.device import DeviceFault
from service.line import Job
from service.logs import logger
from service.outputs import Outputs
from service.priority import compute_behind
from service.scoring import Runner, Scorer
from service.wire import Kind, ModelCard, Order, Outcome, Pulse, State
from service.workers import Place, Worker, welcome

PULSE_S = 1.0
PROBE_S = 15.0
"""How long the device may do nothing before a known picture shows that it still can."""
PROBE_SHARE = 0.01
"""At most so much of the device's time goes into probes."""
AILING_S = 2.5
"""A run that takes so long, and five times what it should, is a bad sign."""
STUCK_S = 5.0
"""One that takes so long, and ten times what it should, does not come back."""
HANDSHAKE_S = 5.0


class Engine:
    """Serves workers from one device until that fails in a way that a new process may mend; then ``serve`` raises.

    ``beat`` is called every second, as long as the engine's loop turns.
    """

    def __init__(self, device: Runner, card: ModelCard, queue: Queue, beat: Callable[[], None] = lambda: None) -> None:
        self._device = device
        self._card = card
        self._queue = queue
        self._beat = beat
        self._workers: set[Worker] = set()
        self._started: dict[Batch, float] = {}
        self._probe_started_s: float | None = None
        self._last_end_s = 0.0
        self._pump_due = False
        self._metrics = metrics.OfEngine(card.model, card.device, queue.limit)
        # on a processor the lanes compute, and what comes and goes shall not wait for that; beside one they only wait
        begin = compute_behind if card.device == "cpu" else None
        self._scorer = Scorer(device, len(card.labels), queue.costs, queue.lanes + queue.ahead, self._metrics, begin)
        self._retiring = False
        self._deserted = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Accept workers and serve them, until the engine has retired and all have left.

        Raises:
            ExceptionGroup: of a DeviceFault.
        """
        listener.setblocking(False)
        async with asyncio.TaskGroup() as self._tasks:
            pulse = self._tasks.create_task(self._keep_pulse())
            self._accepting = self._tasks.create_task(self._accept(listener))
            await self._deserted.wait()
            pulse.cancel()

    def retire(self) -> None:
        """Take no more workers, and ask those that are here to leave when they have their answers."""
        self._retiring = True
        self._accepting.cancel()
        self._tell_pulse()
        self._see_whether_deserted()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor is left, say: what is under way shall not end for that
                logger.error("cannot accept a worker", reason=repr(error))
                await asyncio.sleep(PULSE_S)
            else:
                self._tasks.create_task(self._serve_worker(sock))

    async def _serve_worker(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                worker = await welcome(sock, self._card, self._take)
        except (OSError, ValueError, TimeoutError) as error:
            logger.warning("turned a worker away", reason=repr(error))
            return
        self._workers.add(worker)
        try:
            worker.channel.send(self._pulse().encode())
            await worker.channel.closed
        finally:
            worker.channel.close()
            self._workers.discard(worker)
            for place in worker.places:
                self._cancel(place)
            self._see_whether_deserted()
        logger.info("a worker has left", workers=len(self._workers))

    def _see_whether_deserted(self) -> None:
        if self._retiring and not self._workers:
            self._deserted.set()

    def _take(self, place: Place, order: Order) -> None:
        if order.kind is Kind.CANCEL:
            if self._cancel(place):
                place.answer(Outcome.CANCELLED)
            return
        refusal = self._queue.submit(Job(place, order.arrival_s, order.deadline_s, order.background), time.monotonic())
        if refusal:
            why = Outcome.QUEUE_FULL if refusal.reason == "queue_full" else Outcome.HOPELESS
            place.answer(why, retry_after_s=refusal.retry_after_s)
        elif not self._pump_due:
            # at the end of this turn of the loop: what came with the same read goes into the same run
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _cancel(self, place: Place) -> bool:
        cancelled = self._queue.cancel(place)
        self._metrics.cancelled.inc(cancelled)
        if any(job.key == place for batch in self._started for job in batch.jobs):
            self._scorer.leaving.add(place)
        return cancelled

    def _pump(self) -> None:
        """Do what the queue says is next."""
        self._pump_due = False
        now = time.monotonic()
        for job in self._queue.expire(now):
            job.key.answer(Outcome.EXPIRED)
            self._metrics.expired.inc()
        while batch := self._queue.take(now):
            self._started[batch] = now
            self._start(batch)
        queue = self._queue
        self._metrics.waits(queue.depth, queue.background_depth, queue.predicted_wait_s(now), queue.in_run)

    def _start(self, batch: Batch) -> None:
        run = self._run(batch)
        try:
            self._tasks.create_task(run)
        except RuntimeError:  # the group is ending, and with it this engine: the next one gets these pictures
            run.close()

    async def _run(self, batch: Batch) -> None:
        """One run on the device, from the batch to its answers."""
        handed_over_s = time.monotonic()
        verdicts, whole, ended_s = await self._scorer.score(batch.jobs, batch.alone)
        # a run that was handed over ahead began when the one before it ended
        started_s = max(handed_over_s, self._last_end_s) if self._queue.ahead else handed_over_s
        self._last_end_s, device_s = ended_s, ended_s - started_s
        del self._started[batch]
        self._scorer.leaving.difference_update(verdicts)
        self._metrics.busy(device_s if batch.alone else device_s / self._queue.lanes)
        self._queue.finished(batch, device_s if whole else None)
        self._pump()
        await asyncio.sleep(0)  # the next run goes to the device first, and answers are written beside it
        for job in batch.jobs:
            verdict = verdicts[job.key]
            job.key.answer(
                *((Outcome.OK, verdict) if isinstance(verdict, Outputs) else (verdict, None)),
                batch_size=len(batch.jobs),
                queue_s=started_s - job.arrival_s,
                device_s=device_s,
            )

    async def _keep_pulse(self) -> None:
        """Tell the workers every second how the engine is; when the device has long done nothing, see that it can.

        Raises:
            DeviceFault: a run does not come back. Nor does the thread that waits for it: only the process's end helps.
        """
        probe: asyncio.Task[None] | None = None
        stuck = 0
        while True:
            self._metrics.memory(*self._device.memory())
            await asyncio.sleep(PULSE_S)
            self._beat()
            self._tell_pulse()
            stuck = stuck + 1 if self._running_s() > self._too_long_s(STUCK_S, 10) else 0
            if stuck > 1:  # not at the first look: perhaps the whole process has been frozen until now
                raise DeviceFault(f"A run has not come back for {self._running_s():.1f} s.")
            idle = not self._started and (probe is None or probe.done())
            if idle and self._since_success_s() > self._probe_every_s():
                probe = self._tasks.create_task(self._probe())

    def _tell_pulse(self) -> None:
        pulse = self._pulse().encode()
        for worker in self._workers:
            worker.channel.send(pulse)

    async def _probe(self) -> None:
        """See that the device still can, and what it costs now: after a slow spell nothing else might tell."""
        started_s = self._probe_started_s = time.monotonic()
        await self._scorer.probe()
        self._probe_started_s = None
        self._queue.costs.learn(1, time.monotonic() - started_s)

    def _pulse(self) -> Pulse:
        now, running_s = time.monotonic(), self._running_s()
        well = running_s < self._too_long_s(AILING_S, 5) and self._since_success_s() < 3 * self._probe_every_s()
        return Pulse(
            state=State.RETIRING if self._retiring else State.WELL if well else State.AILING,
            depth=self._queue.depth,
            predicted_wait_s=self._queue.predicted_wait_s(now),
            running_s=running_s,
            since_success_s=self._since_success_s(),
            lone_s=self._queue.costs.seconds(1),
        )

    def _running_s(self) -> float:
        """Age of the oldest run, or probe, that is under way."""
        started_s = [*self._started.values(), *([self._probe_started_s] if self._probe_started_s is not None else [])]
        return time.monotonic() - min(started_s) if started_s else 0.0

    def _too_long_s(self, least_s: float, times: int) -> float:
        """So long, and so many times as long as the largest run should take."""
        return max(least_s, times * self._queue.costs.seconds(self._queue.costs.largest))

    def _since_success_s(self) -> float:
        return time.monotonic() - self._scorer.last_success_s

    def _probe_every_s(self) -> float:
        return max(PROBE_S, self._queue.costs.seconds(1) / PROBE_SHARE)
