"""The HTTP worker's end of the link to the engine: lends slots, sends pictures, and outlives the engine."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoders import Decoders
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded
from service.logs import logger
from service.wire import LENGTH, Answer, Channel, Kind, ModelCard, Order, Outcome, Pulse, Slab, decode_report

RETRY_S = 0.1
SILENCE_S = 5.0
"""An engine that has given no pulse for so long is not well."""
RESTART_S = 2.0
"""What callers are told to wait while there is no engine."""

Load = Callable[[NDArray[np.uint8], ModelCard], None]
"""Writes a picture into a slot's pixels [S, S, 3], as the model on the card takes it."""


class Slot:
    """Room for one picture and its scores, lent to one request."""

    def __init__(self, number: int, slab: Slab) -> None:
        self.number = number
        self.slab = slab
        self.pixels: NDArray[np.uint8] = slab.pixels[number]
        self.scores: NDArray[np.float32] = slab.scores[number]
        self.user: asyncio.Future[Any] | None = None
        """Done as soon as nobody else can touch the slot any more."""


@dataclass(slots=True)
class _Sent:
    """A picture the engine owes an answer for; sent again to the next engine if this one dies."""

    order: Order
    answer: asyncio.Future[Answer]
    cancelled: bool = False


class Link:
    """One worker's connection to an engine, with ``slots`` pictures at most under way.

    ``card`` says what the engine serves; it is None until the first engine is there.
    """

    def __init__(self, slots: int, decoders: Decoders) -> None:
        self.card: ModelCard | None = None
        self._slots = slots
        self._decoders = decoders
        self._slab: Slab | None = None
        self._free: list[Slot] = []
        self._sent: dict[int, _Sent] = {}
        self._channel: Channel | None = None
        self._pulse: Pulse | None = None
        self._pulse_at_s = 0.0
        self._first_pulse = asyncio.Event()

    async def run(self, path: Path) -> None:
        """Stay connected to the socket at ``path``, one engine after the other, until cancelled."""
        while True:
            try:
                channel = await self._connect(path)
                await channel.closed
                logger.warning("lost the engine", under_way=len(self._sent))
            except OSError as error:
                logger.warning("cannot reach the engine", reason=str(error))
            finally:
                self._disconnected()
            await asyncio.sleep(RETRY_S)

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """Borrow a slot. It is lent again when whoever uses it is done, even if the borrower leaves before.

        Raises:
            Overloaded: none is free.
            EngineUnavailable: there is no engine to send it to.
        """
        if self._channel is None:
            raise EngineUnavailable("The model is not loaded yet or is being restarted.", RESTART_S)
        if not self._free:
            raise Overloaded("Too many pictures are under way.", self._predicted_wait_s())
        free = self._free  # for another model there will be other slots
        slot = free.pop()
        slot.user = None
        try:
            yield slot
        finally:
            if slot.user is None or slot.user.done():
                free.append(slot)
            else:
                slot.user.add_done_callback(lambda _: free.append(slot))

    async def load(self, slot: Slot, load: Load) -> ModelCard:
        """Have a decoder thread write the picture into the slot, as the model on the returned card takes it.

        What ``load`` raises is raised here.
        """
        card = slot.slab.card
        work = self._decoders.submit(partial(load, slot.pixels, card))
        slot.user = work.done
        try:
            await asyncio.shield(work.done)
        except asyncio.CancelledError:
            work.wanted = False  # begun, it cannot be stopped: the slot stays taken until it is done
            raise
        return card

    async def classify(self, slot: Slot, deadline_s: float) -> Answer:
        """Have the engine score the slot's picture, by a deadline on the system's monotonic clock.

        Cancelled, it tells the engine not to compute what nobody waits for.

        Raises:
            Overloaded: the queue is full, or too long for the deadline.
            DeadlineExceeded: the deadline came before the picture's turn.
            InferenceFailed: the model could not make sense of this picture.
            EngineUnavailable: the engine came back with another model.
        """
        if slot.slab is not self._slab:
            raise _another_model()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        slot.user = answer
        sent = self._sent[slot.number] = _Sent(Order(Kind.SUBMIT, slot.number, time.monotonic(), deadline_s), answer)
        if self._channel is not None:
            self._channel.send(sent.order.encode())
        try:
            return _judged(await asyncio.shield(answer))
        except asyncio.CancelledError:
            self._cancel(sent)
            raise

    def ailments(self) -> list[str]:
        """Why this worker's requests would not be answered well now; empty if they would."""
        if self._channel is None:
            return ["the engine is starting" if self.card is None else "the engine is gone and being restarted"]
        if self._pulse is None:
            return ["the engine has not reported yet"]
        silent_s = time.monotonic() - self._pulse_at_s
        if silent_s > SILENCE_S:
            return [f"the engine has been silent for {silent_s:.0f} s"]
        if not self._pulse.healthy:
            return [
                f"the device is not well: no success for {self._pulse.since_success_s:.0f} s, "
                f"a run under way for {self._pulse.running_s:.0f} s"
            ]
        return []

    def _predicted_wait_s(self) -> float:
        return self._pulse.predicted_wait_s if self._pulse else RESTART_S

    async def _connect(self, path: Path) -> Channel:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            sock.connect(str(path))
            card = ModelCard.decode(await _receive_body(sock))
            slab = self._slab_for(card)
            socket.send_fds(sock, [LENGTH.pack(self._slots)], [slab.fd])
            _, channel = await loop.create_unix_connection(
                lambda: Channel(Answer.FORMAT.size, self._received), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        await self._accepted(channel)
        self._channel = channel
        for sent in self._sent.values():
            channel.send(sent.order.encode())
        logger.info("connected to the engine", model=card.model, device=card.device, sent_again=len(self._sent))
        return channel

    async def _accepted(self, channel: Channel) -> None:
        """Wait for the engine's first pulse: it has taken the slab.

        Raises:
            ConnectionError: it has turned us away.
        """
        pulse = asyncio.create_task(self._first_pulse.wait())
        ends: list[asyncio.Future[Any]] = [pulse, channel.closed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        pulse.cancel()
        if channel.closed.done():
            raise ConnectionError("the engine turned us away")

    def _slab_for(self, card: ModelCard) -> Slab:
        """The slots that the model needs. Pictures that lie in another model's are of no use to it."""
        if self._slab and self._slab.card == card:
            return self._slab
        self.card, self._slab = card, Slab.create(self._slots, card)
        self._free = [Slot(number, self._slab) for number in range(self._slots)]
        while self._sent:
            self._sent.popitem()[1].answer.set_exception(_another_model())
        return self._slab

    def _disconnected(self) -> None:
        """Slots that nobody waits for are free again; the others wait for the next engine."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self._pulse = None
        self._first_pulse.clear()
        for sent in [sent for sent in self._sent.values() if sent.cancelled]:
            self._settle(Answer(Outcome.CANCELLED, sent.order.slot))

    def _cancel(self, sent: _Sent) -> None:
        if sent.answer.done():
            return
        sent.cancelled = True
        if self._channel is None:
            self._settle(Answer(Outcome.CANCELLED, sent.order.slot))
        else:
            self._channel.send(Order(Kind.CANCEL, sent.order.slot).encode())

    def _received(self, message: bytes) -> None:
        report = decode_report(message)
        if isinstance(report, Answer):
            self._settle(report)
        else:
            self._pulse, self._pulse_at_s = report, time.monotonic()
            self._first_pulse.set()

    def _settle(self, answer: Answer) -> None:
        sent = self._sent.pop(answer.slot, None)
        if sent is None:
            raise ValueError(f"an answer that nobody waits for: {answer}")
        sent.answer.set_result(answer)


async def _receive_body(sock: socket.socket) -> bytes:
    """One length-prefixed body.

    Raises:
        ConnectionError: the other end is gone.
    """
    (length,) = LENGTH.unpack(await _receive_exactly(sock, LENGTH.size))
    return await _receive_exactly(sock, length)


async def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = await asyncio.get_running_loop().sock_recv(sock, count - len(received))
        if not chunk:
            raise ConnectionError("the engine hung up")
        received += chunk
    return received


def _another_model() -> EngineUnavailable:
    return EngineUnavailable("The model was replaced by another meanwhile.", 0.0)


def _judged(answer: Answer) -> Answer:
    match answer.outcome:
        case Outcome.OK:
            return answer
        case Outcome.REFUSED:
            raise Overloaded("Too many pictures wait for the model.", answer.retry_after_s)
        case Outcome.FAILED:
            raise InferenceFailed("The model could not make sense of this picture.")
        case _:
            raise DeadlineExceeded("The picture's turn did not come in time.")
