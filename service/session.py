"""The HTTP worker's dealings with one engine: the slots that it lends, and the pictures it is owed an answer for."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import metrics
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded, ServiceError
from service.logs import logger
from service.outputs import Outputs
from service.wire import Answer, Channel, Kind, ModelCard, Order, Outcome, Pulse, Slab, State, decode_report

RESTART_S = 2.0
"""What callers are told to wait while there is no engine."""
DEATHS = 2
"""A picture that so many engines have died with on their device is not sent to another one."""
PARTING_S = 0.05
"""So long before its deadline a picture that no engine is there for is given up, while there is time to say so."""


class Slot:
    """Room for one picture and what is said of it, lent to one request."""

    def __init__(self, number: int, session: "Session") -> None:
        self.number = number
        self.session = session
        self.card = session.slab.card
        self.pixels, self.outputs = session.views[number]
        self.user: asyncio.Future[Any] | None = None
        """Done as soon as nobody else can touch the slot any more."""


@dataclass(slots=True)
class _Sent:
    """A picture the engine owes an answer for; sent again to the next engine if this one dies, but not for ever."""

    order: Order
    answer: asyncio.Future[Answer]
    cancelled: bool = False
    deaths: int = 0
    """Of engines that had it on their device."""


class Session:
    """So many slots for the model on the card. They outlive an engine that dies: the next one is sent what lies there.

    ``pulse`` is the connected engine's last, None before its first; ``views`` are each slot's pixels and outputs.
    """

    def __init__(self, slots: int, card: ModelCard) -> None:
        self.slab = Slab.create(slots, card)
        self.pulse: Pulse | None = None
        self.pulse_at_s = 0.0
        self.views: list[tuple[NDArray[np.uint8], Outputs]] = [
            (self.slab.pixels[number], self.slab.outputs.of(number)) for number in range(slots)
        ]
        # no slots, which know the session: the slab shall go with its last user, not at the next collection
        self._free = list(range(slots))
        metrics.slots.labels(card.model).set(slots)
        self.abandoned_decodes = metrics.abandoned_decodes.labels(card.model)
        self._lent = metrics.slots_lent.labels(card.model)  # of an engine's successor's session too, beside this one
        self._sent: dict[int, _Sent] = {}
        # whoever's deadline is not before the one, and before the other, cannot be met: the engine has said so of one
        self._hopeless_s = math.inf, -math.inf
        self._channel: Channel | None = None
        self._greeted = asyncio.Event()
        self._dismissed = asyncio.Event()
        self._emptied: asyncio.Future[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether there is an engine, as far as one can know."""
        return self._channel is not None and not self._channel.closed.done()

    @property
    def under_way(self) -> int:
        """How many pictures answers are owed for."""
        return len(self._sent)

    async def connect(self, channel: Channel) -> None:
        """Go on with the engine at the other end, which has the slab, as soon as it has given its first pulse.

        Raises:
            ConnectionError: it has turned us away.
        """
        await _first(self._greeted, channel)
        if channel.closed.done():
            raise ConnectionError("the engine turned us away")
        self._channel = channel
        metrics.replayed_pictures.labels(self.slab.card.model).inc(len(self._sent))
        for sent in self._sent.values():
            channel.send(sent.order.encode())

    async def end(self) -> None:
        """Return when the engine is gone, or wants to go."""
        if self._channel:
            await _first(self._dismissed, self._channel)

    def disconnect(self) -> None:
        """Hang up. Slots that nobody waits for are free again; the others wait for the next engine."""
        if self._channel:
            self._channel.close()
        self._channel = self.pulse = None
        self._greeted.clear()
        self._dismissed.clear()
        for sent in list(self._sent.values()):
            self._look_after(sent)

    def abandon(self, error: EngineUnavailable) -> None:
        """Hang up for good: whoever still waits gets the error."""
        self.disconnect()
        while self._sent:
            self._sent.popitem()[1].answer.set_exception(error)

    async def emptied(self) -> None:
        """Return when no slot is lent any more, or the engine is gone."""
        if len(self._free) < self.slab.slots and self._channel:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied, self._channel.closed], return_when=asyncio.FIRST_COMPLETED)

    def admit(self, deadline_s: float, leave: int) -> None:
        """Nothing, if a picture that came now would be let in.

        Raises:
            Overloaded: no slot is free but those to ``leave``, or the deadline cannot be met: not even by a run of its
                own, or not by the last one in the line.
            EngineUnavailable: there is no engine to send it to.
        """
        if not self.connected:
            raise EngineUnavailable("The model is not loaded yet or is being restarted.", RESTART_S)
        if self.pulse and (left_s := max(deadline_s - time.monotonic(), 0.0)) < self.pulse.lone_s:
            detail = f"The model takes {self.pulse.lone_s:.3g} s; of the request's time there are {left_s:.3g} s left."
            raise Overloaded(detail, self._predicted_wait_s(), "deadline")
        self.hope(deadline_s)
        if len(self._free) <= leave:
            raise Overloaded("Too many pictures are under way.", self._predicted_wait_s(), "no_slot")

    def hope(self, deadline_s: float) -> None:
        """Nothing, unless the engine has just refused one that it would have met sooner: then raise Overloaded.

        May be called from any thread.
        """
        behind_s, end_s = self._hopeless_s
        if behind_s <= deadline_s < end_s:
            raise Overloaded(_cannot_get_to_it(deadline_s - time.monotonic()), end_s - deadline_s, "deadline")

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """Borrow a slot; one is free, as ``admit`` knows. It is lent again when whoever uses it is done, even if the
        borrower leaves before."""
        slot = Slot(self._free.pop(), self)
        self._lent.inc()
        try:
            yield slot
        finally:
            if slot.user is None or slot.user.done():
                self._take_back(slot)
            else:
                slot.user.add_done_callback(lambda _: self._take_back(slot))

    async def ask(self, slot: Slot, order: Order) -> Answer:
        """Have the engine do what is ordered with the slot's picture; raise as ``Link.classify`` does."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        slot.user = answer
        sent = self._sent[slot.number] = _Sent(order, answer)
        if self._channel:
            self._channel.send(order.encode())
        else:
            self._wait_for_an_engine(sent)
        try:
            return _judged(await asyncio.shield(answer), order.deadline_s - order.arrival_s)
        except asyncio.CancelledError:
            self._cancel(sent)
            raise

    def received(self, message: bytes) -> None:
        """Take in a message of the engine's. Raise ValueError if it makes no sense."""
        report = decode_report(message)
        if isinstance(report, Answer):
            self._settle(report)
            return
        self.pulse, self.pulse_at_s = report, time.monotonic()
        self._greeted.set()
        if report.state is State.RETIRING:
            self._dismissed.set()

    def _take_back(self, slot: Slot) -> None:
        self._free.append(slot.number)
        self._lent.dec()
        if self._emptied and not self._emptied.done() and len(self._free) == self.slab.slots:
            self._emptied.set_result(None)

    def _look_after(self, sent: _Sent) -> None:
        """What becomes of a picture now that there is no engine."""
        slot = sent.order.slot
        if self.slab.running[slot]:
            sent.deaths += 1
            sent.order = replace(sent.order, suspect=True)
            self.slab.running[slot] = False
        if sent.cancelled:
            self._settle(Answer(Outcome.CANCELLED, slot))
        elif sent.deaths >= DEATHS:
            logger.error("refused a picture that engines died with", model=self.slab.card.model, deaths=sent.deaths)
            self._fail(sent, InferenceFailed("The model's process ended twice over this picture."))
        else:
            self._wait_for_an_engine(sent)

    def _wait_for_an_engine(self, sent: _Sent) -> None:
        patience_s = sent.order.deadline_s - time.monotonic() - PARTING_S
        asyncio.get_running_loop().call_later(max(patience_s, 0.0), self._give_up, sent)

    def _give_up(self, sent: _Sent) -> None:
        if self._channel is None and self._sent.get(sent.order.slot) is sent:
            self._fail(sent, EngineUnavailable("The model is still being restarted.", RESTART_S))

    def _fail(self, sent: _Sent, error: ServiceError) -> None:
        del self._sent[sent.order.slot]
        sent.answer.set_exception(error)

    def _predicted_wait_s(self) -> float:
        return self.pulse.predicted_wait_s if self.pulse else RESTART_S

    def _cancel(self, sent: _Sent) -> None:
        if sent.answer.done():
            return
        sent.cancelled = True
        if self._channel:
            self._channel.send(Order(Kind.CANCEL, sent.order.slot).encode())
        else:
            self._settle(Answer(Outcome.CANCELLED, sent.order.slot))

    def _settle(self, answer: Answer) -> None:
        sent = self._sent.pop(answer.slot, None)
        if sent is None:
            raise ValueError(f"an answer that nobody waits for: {answer}")
        if answer.outcome is Outcome.HOPELESS:
            self._hopeless_s = sent.order.deadline_s, sent.order.deadline_s + answer.retry_after_s
        sent.answer.set_result(answer)


def _cannot_get_to_it(left_s: float) -> str:
    return f"The model cannot get to this picture in the {left_s:.3g} s that are left of the request's time."


async def _first(event: asyncio.Event, channel: Channel) -> None:
    """Wait for the event, or for the other end to hang up."""
    happening = asyncio.create_task(event.wait())
    ends: list[asyncio.Future[Any]] = [happening, channel.closed]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happening.cancel()


def _judged(answer: Answer, left_s: float) -> Answer:
    match answer.outcome:
        case Outcome.OK:
            return answer
        case Outcome.QUEUE_FULL:
            raise Overloaded("Too many pictures wait for the model.", answer.retry_after_s, "queue_full")
        case Outcome.HOPELESS:
            raise Overloaded(_cannot_get_to_it(left_s), answer.retry_after_s, "deadline")
        case Outcome.FAILED:
            raise InferenceFailed("The model could not make sense of this picture.")
        case _:
            raise DeadlineExceeded(f"The picture's turn did not come in the {left_s:.3g} s that were left for it.")
