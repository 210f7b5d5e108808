"""The engine's end of the link: the HTTP workers that hand pictures in and wait for answers."""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.outputs import Outputs, Wants
from service.wire import LENGTH, Answer, Channel, ModelCard, Order, Outcome, Slab


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture lies: the identity of its job."""

    worker: "Worker"
    slot: int
    wants: Wants = field(default=Wants.NONE, compare=False)
    suspect: bool = field(default=False, compare=False)
    """It may be what an engine died of."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The picture [S, S, 3], in shared memory."""
        pixels: NDArray[np.uint8] = self.worker.slab.pixels[self.slot]
        return pixels

    def running(self, whether: bool) -> None:
        """Mark it as on the device, or not; if this process dies, the worker finds the mark."""
        self.worker.slab.running[self.slot] = whether

    def answer(
        self,
        outcome: Outcome,
        outputs: Outputs | None = None,
        *,
        batch_size: int = 0,
        queue_s: float = 0.0,
        device_s: float = 0.0,
        retry_after_s: float = 0.0,
    ) -> None:
        """Write what the model says beside the picture, if there is anything, and give the slot back.

        To a worker that is gone nothing is said, nor written: it may already use the slot otherwise.
        """
        if self.worker.channel.closed.done():
            return
        if outputs is not None:
            self._write(outputs, self.worker.slab.outputs)
        self.worker.channel.send(Answer(outcome, self.slot, batch_size, queue_s, device_s, retry_after_s).encode())

    def _write(self, outputs: Outputs, slab: Outputs) -> None:
        slab.logits[self.slot] = outputs.logits
        if outputs.features is not None and slab.features is not None:
            slab.features[self.slot] = outputs.features
        if outputs.evidence is not None and slab.evidence is not None:
            slab.evidence.labels[self.slot], slab.evidence.maps[self.slot] = outputs.evidence


class Worker:
    """An HTTP worker; ``take`` is called with each of its orders and the place it is about."""

    def __init__(self, slab: Slab, take: Callable[[Place, Order], None]) -> None:
        self.slab = slab
        self.channel = Channel(Order.FORMAT.size, self._receive)
        self._take = take

    @property
    def places(self) -> list[Place]:
        """Where its pictures may lie."""
        return [Place(self, slot) for slot in range(self.slab.slots)]

    def _receive(self, message: bytes) -> None:
        order = Order.decode(message)
        if order.slot >= self.slab.slots:
            raise ValueError(f"slot {order.slot} of {self.slab.slots}")
        self._take(Place(self, order.slot, order.wants, order.suspect), order)


async def welcome(sock: socket.socket, card: ModelCard, take: Callable[[Place, Order], None]) -> Worker:
    """Show a new worker the card, take its slab, and listen to it from now on; or hang up.

    Raises:
        OSError: it is gone, or brought no slab.
        ValueError: its slab is too small for the slots it says.
    """
    loop = asyncio.get_running_loop()
    try:
        sock.setblocking(False)
        body = card.encode()
        await loop.sock_sendall(sock, LENGTH.pack(len(body)) + body)
        worker = Worker(await _receive_slab(sock, card), take)
        await loop.create_unix_connection(lambda: worker.channel, sock=sock)
    except BaseException:
        sock.close()
        raise
    return worker


async def _receive_slab(sock: socket.socket, card: ModelCard) -> Slab:
    await _readable(sock)
    header, descriptors, _, _ = socket.recv_fds(sock, LENGTH.size, maxfds=1)
    try:
        if len(header) != LENGTH.size or not descriptors:
            raise ConnectionError("no slab came")
        (slots,) = LENGTH.unpack(header)
        return Slab(descriptors[0], slots, card)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)  # the mapping holds the memory


async def _readable(sock: socket.socket) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
