"""The HTTP worker's end of the link to a model's engine: it outlives engines, and goes over to the next in mid-flow."""

import asyncio
import math
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.decoders import Decoders, Heavy
from service.errors import EngineUnavailable
from service.logs import logger
from service.outputs import Wants
from service.relapses import relapsed
from service.session import RESTART_S, Session, Slot
from service.wire import LENGTH, Answer, Channel, Kind, ModelCard, Order, State

RETRY_S = 0.1
SILENCE_S = 5.0
"""An engine that has given no pulse for so long is not well."""

Load = Callable[[NDArray[np.uint8], ModelCard], Heavy | None]
"""Writes a picture into a slot's pixels [S, S, 3], as the model on the card takes it; or says what is left to do."""


class Link:
    """One worker's connection to the engine of a model, with ``slots`` pictures at most under way.

    ``card`` says what the engine serves; it is None until the first engine is there.
    """

    def __init__(self, slots: int, decoders: Decoders) -> None:
        self.card: ModelCard | None = None
        self._slots = slots
        self._decoders = decoders
        self._session: Session | None = None
        self._path: Path | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def run(self, path: Path) -> None:
        """Stay connected to the socket at ``path``, one engine after the other, until cancelled."""
        self._path = path
        try:
            while True:
                try:
                    session = await self._connect(path)
                except OSError as error:
                    logger.warning("cannot reach the engine", reason=str(error))
                    await asyncio.sleep(RETRY_S)
                    continue
                await session.end()
                if not session.connected:
                    logger.warning("lost the engine", under_way=session.under_way)
                    session.disconnect()
                    await asyncio.sleep(RETRY_S)
        finally:
            for leaving in self._leaving:
                leaving.cancel()
            if self._session:
                self._session.disconnect()

    def admit(self, deadline_s: float = math.inf, leave: int = 0) -> Session:
        """Whose slot a picture that came now would get, of which so many are to ``leave``.

        Raises:
            Overloaded: there is none free, or the deadline cannot be met.
            EngineUnavailable: there is no engine to send it to.
        """
        if self._session is None:
            raise EngineUnavailable("The model is not loaded yet.", RESTART_S)
        self._session.admit(deadline_s, leave)
        return self._session

    def slot(self, deadline_s: float = math.inf, leave: int = 0) -> AbstractContextManager[Slot]:
        """Borrow a slot. It is lent again when whoever uses it is done, even if the borrower leaves before.

        Raises as ``admit`` does.
        """
        return self.admit(deadline_s, leave).slot()

    async def load(self, slot: Slot, load: Load) -> None:
        """Have a decoder thread write the picture into the slot, as the model on the slot's card takes it.

        What ``load`` raises is raised here.
        """
        work = self._decoders.submit(partial(load, slot.pixels, slot.card))
        slot.user = work.done
        try:
            await asyncio.shield(work.done)
        except asyncio.CancelledError:
            if work.abandon():  # the slot stays taken until it is done
                slot.session.abandoned_decodes.inc()
                work.done.add_done_callback(lambda _: slot.session.abandoned_decodes.dec())
            work.done.add_done_callback(_nobody_asks)
            raise

    async def classify(
        self, slot: Slot, deadline_s: float, wants: Wants = Wants.NONE, *, background: bool = False
    ) -> Answer:
        """Have the engine look at the slot's picture, by a deadline on the system's monotonic clock.

        Cancelled, it tells the engine not to compute what nobody waits for.

        Raises:
            Overloaded: the queue is full, or too long for the deadline.
            DeadlineExceeded: the deadline came before the picture's turn.
            InferenceFailed: the model could not make sense of this picture.
            EngineUnavailable: the engine came back with another model.
        """
        if slot.session is not self._session and not slot.session.connected:
            raise _another_model()
        order = Order(Kind.SUBMIT, slot.number, time.monotonic(), deadline_s, wants, background)
        return await slot.session.ask(slot, order)

    @property
    def hopeless(self) -> bool:
        """Whether the engine ends again and again."""
        return self._path is not None and relapsed(self._path)

    def ailments(self) -> list[str]:
        """Why this worker's requests would not be answered well now; empty if they would."""
        session = self._session
        if session is None:
            return ["the engine is starting"]
        if not session.connected or session.pulse is None:
            return ["the engine is gone and being restarted"]
        silent_s = time.monotonic() - session.pulse_at_s
        if silent_s > SILENCE_S:
            return [f"the engine has been silent for {silent_s:.0f} s"]
        if session.pulse.state is State.AILING:
            return [
                f"the device is not well: no success for {session.pulse.since_success_s:.0f} s, "
                f"a run under way for {session.pulse.running_s:.0f} s"
            ]
        return []

    async def _connect(self, path: Path) -> Session:
        """A session with the engine that listens there, in place of the one before."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            sock.connect(str(path))
            card = ModelCard.decode(await _receive_body(sock))
            session = self._session_for(card)
            socket.send_fds(sock, [LENGTH.pack(session.slab.slots)], [session.slab.fd])
            _, channel = await asyncio.get_running_loop().create_unix_connection(
                lambda: Channel(Answer.FORMAT.size, session.received), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        sent_again = session.under_way
        try:
            await session.connect(channel)
        except BaseException:
            channel.close()
            raise
        self.card = card
        self._use(session)
        logger.info("connected to the engine", model=card.model, device=card.device, sent_again=sent_again)
        return session

    def _session_for(self, card: ModelCard) -> Session:
        """The session so far if its engine is gone and was such a one, because its pictures lie there; or a new one."""
        session = self._session
        if session and not session.connected and session.slab.card == card:
            session.disconnect()
            return session
        return Session(self._slots, card)

    def _use(self, session: Session) -> None:
        """From now on lend this session's slots. Those of the one before are answered by its engine, if it lives."""
        before, self._session = self._session, session
        if before and before is not session:
            leaving = asyncio.create_task(_leave(before))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)


def _nobody_asks(done: asyncio.Future[None]) -> None:
    """Take note of how it ended, for asyncio complains of errors that nobody looks at."""
    if not done.cancelled():
        done.exception()


async def _leave(session: Session) -> None:
    """Hang up as soon as all is answered. Pictures that lie in a dead engine's slots are of no use to another model."""
    try:
        await session.emptied()
    finally:
        session.abandon(_another_model())


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
