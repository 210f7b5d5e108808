"""What goes between HTTP workers and the engine: slots of shared memory, and messages of fixed size about them.

engine -> worker    model card        once, on connecting
worker -> engine    slab              once: the file descriptor of its slots
worker -> engine    order             a slot's picture is ready, or its caller left
engine -> worker    answer            exactly one for each picture: the slot is the worker's again
engine -> worker    pulse             every second, and when it changes: how the engine is
"""

import asyncio
import fcntl
import json
import mmap
import os
import struct
import weakref
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from enum import IntEnum
from typing import ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray

from models.labels import Label
from service.logs import logger
from service.outputs import EVIDENCE_LABELS, Evidence, Outputs, Wants

LENGTH = struct.Struct("<I")
"""Of the model card that follows; or how many slots there are in the slab whose descriptor comes with it."""
CACHE_LINE = 64
LAST_S = 2.0**32
"""No monotonic clock gets so far."""


@dataclass(frozen=True)
class ModelCard:
    """What an engine serves."""

    model: str
    device: str
    image_size: int
    crop_pct: float
    grid_size: int
    feature_size: int
    labels: tuple[Label, ...]

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        fields = json.loads(body)
        return cls(**{**fields, "labels": tuple(Label(**label) for label in fields["labels"])})


SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Its size is fixed."""


class Slab:
    """Slots of shared memory, each with room for one picture and all that a model can say of it.

    ``pixels`` [slots, S, S, 3] and ``outputs``, which hold of each slot what their names say, look into it. ``running``
    [slots] is what the engine leaves behind if it dies: which pictures it had on its device just then. The memory is
    private to the processes that hold its file descriptor or have mapped it, and goes with the last of them.
    """

    fd: int
    """Of a slab that was created here; the slab's end closes it."""

    def __init__(self, fd: int, slots: int, card: ModelCard) -> None:
        """Map the slab behind ``fd``, which may be closed then.

        Raises:
            ValueError: the memory is smaller than the slots need, or could become so, which would be the end of whoever
                looks into it.
            OSError: it is no memory.
        """
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise ValueError("the memory is not sealed")
        layout = _layout(card)
        self.card = card
        self.slots = slots
        memory = np.ndarray(slots, layout, mmap.mmap(fd, slots * layout.itemsize))
        self.pixels: NDArray[np.uint8] = memory["pixels"]
        self.running: NDArray[np.bool_] = memory["running"]
        self.outputs = Outputs(
            memory["logits"], memory["features"], Evidence(memory["evidence_labels"], memory["evidence_maps"])
        )

    @classmethod
    def create(cls, slots: int, card: ModelCard) -> Self:
        """A new slab, large enough for ``slots`` pictures of the model on the card."""
        fd = os.memfd_create("volo-slab", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, slots * _layout(card).itemsize)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        slab = cls(fd, slots, card)
        slab.fd = fd
        weakref.finalize(slab, os.close, fd)
        return slab


def _layout(card: ModelCard) -> np.dtype[np.void]:
    """A slot's: every part begins on a cache line."""
    size, grid, classes = card.image_size, card.grid_size, len(card.labels)
    labels = min(EVIDENCE_LABELS, classes)
    parts: list[tuple[str, type[np.generic], tuple[int, ...]]] = [
        ("pixels", np.uint8, (size, size, 3)),
        ("running", np.bool_, ()),
        ("logits", np.float32, (classes,)),
        ("features", np.float32, (card.feature_size,)),
        ("evidence_labels", np.int32, (labels,)),
        ("evidence_maps", np.float32, (labels, grid, grid)),
    ]
    names, offsets, end = [], [], 0
    formats = [np.dtype((kind, shape)) for _, kind, shape in parts]
    for (name, _, _), format_ in zip(parts, formats, strict=True):
        names.append(name)
        offsets.append(end)
        end += -(-format_.itemsize // CACHE_LINE) * CACHE_LINE
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": end})


class Kind(IntEnum):
    SUBMIT = 0
    CANCEL = 1


@dataclass(frozen=True, slots=True)
class Order:
    """A worker's message about a slot. Times are of the system's monotonic clock, which all processes share."""

    kind: Kind
    slot: int
    arrival_s: float = 0.0
    deadline_s: float = 0.0
    wants: Wants = Wants.NONE
    background: bool = False
    suspect: bool = False
    """An engine died with it on its device."""

    FORMAT: ClassVar = struct.Struct("<BB??Idd")

    def encode(self) -> bytes:
        flags = self.background, self.suspect
        return self.FORMAT.pack(self.kind, self.wants, *flags, self.slot, self.arrival_s, self.deadline_s)

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Raise ValueError for what no worker says."""
        kind, wants, background, suspect, slot, arrival_s, deadline_s = cls.FORMAT.unpack(message)
        order = cls(Kind(kind), slot, arrival_s, deadline_s, Wants(wants), background, suspect)
        if not (0 <= order.arrival_s < LAST_S and 0 <= order.deadline_s < LAST_S):  # so that NaN fails too
            raise ValueError(f"times that no clock shows: {order}")
        return order


class Outcome(IntEnum):
    OK = 0
    QUEUE_FULL = 1
    """Refused at once."""
    EXPIRED = 2
    """While it waited, its deadline came too near."""
    CANCELLED = 3
    FAILED = 4
    """The model could not make sense of this picture."""
    HOPELESS = 5
    """Refused at once: the deadline cannot be met."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's message that a slot is done with, and how its picture ended."""

    outcome: Outcome
    slot: int
    batch_size: int = 0
    queue_s: float = 0.0
    device_s: float = 0.0
    retry_after_s: float = 0.0

    FORMAT: ClassVar = struct.Struct("<BxxxIIfff")

    def encode(self) -> bytes:
        return self.FORMAT.pack(
            self.outcome, self.slot, self.batch_size, self.queue_s, self.device_s, self.retry_after_s
        )


class State(IntEnum):
    """How an engine is."""

    WELL = 0
    AILING = 1
    """Its device does not do what it should."""
    RETIRING = 2
    """It still answers, and will end when its workers have left: another one takes over."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """The engine's message about itself."""

    state: State
    depth: int
    predicted_wait_s: float
    running_s: float
    """Age of the oldest run on the device."""
    since_success_s: float
    lone_s: float
    """What a run of one picture takes."""

    MARK: ClassVar = 255
    FORMAT: ClassVar = struct.Struct("<BBxxIffff")

    def encode(self) -> bytes:
        return self.FORMAT.pack(self.MARK, *astuple(self))  # once a second; of the others there are thousands


def decode_report(message: bytes) -> Answer | Pulse:
    """What the engine said."""
    if message[0] == Pulse.MARK:
        _, state, *figures = Pulse.FORMAT.unpack(message)
        return Pulse(State(state), *figures)
    outcome, *rest = Answer.FORMAT.unpack(message)
    return Answer(Outcome(outcome), *rest)


class Channel(asyncio.Protocol):
    """One end of a connection that carries messages of one size in, and bytes out."""

    def __init__(self, message_size: int, receive: Callable[[bytes], None]) -> None:
        self._message_size = message_size
        self._receive = receive
        self._rest = b""
        self._outbox: list[bytes] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % self._message_size
        self._rest = data[whole:]
        try:
            for start in range(0, whole, self._message_size):
                self._receive(data[start : start + self._message_size])
        except ValueError as error:
            logger.error("the other end makes no sense, hanging up", reason=repr(error))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._receive = _ignore  # it may hold the worker and its slab, which shall go now, not at the next collection
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, message: bytes) -> None:
        """Send, or do nothing if the other end is gone: whoever needs to know that waits for ``closed``.

        What is sent in one turn of the loop goes in one write, because each wakes the other end up.
        """
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._outbox and not self._transport.is_closing():
            self._transport.write(b"".join(self._outbox))
        self._outbox.clear()


def _ignore(message: bytes) -> None:
    """Nobody listens any more."""
