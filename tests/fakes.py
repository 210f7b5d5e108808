"""A device that computes what the test says, when the test says; all around it is real."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.labels import Label
from service.batching import Queue
from service.costs import Costs
from service.device import DeviceFault, OutOfMemory
from service.engine import Engine
from service.outputs import EVIDENCE_LABELS, Evidence, Outputs, Wants
from service.wire import ModelCard

CLASSES = 256
LABELS = tuple(Label(f"class {index}") for index in range(CLASSES))
CARD = ModelCard("fake", "cpu", 8, 1.0, grid_size=4, feature_size=3, labels=LABELS)


class FakeDevice:
    """Says of a picture that it is of the class that its first byte names.

    Its features are three times that number, and the evidence for every label is the patch of that number: it is 1
    there, and 0 elsewhere. Runs wait while ``gate`` is closed. ``batches`` are the classes of each run, in order.
    Pictures of the classes in ``poison`` make their run raise, those in ``nan`` get NaN for scores, and those in
    ``deadly`` are the device's end. There is memory for runs of ``room``.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.sizes: list[int] = []
        self.alone: list[bool] = []
        self.wants: list[Wants] = []
        self.probes = 0
        self.poison: set[int] = set()
        self.nan: set[int] = set()
        self.deadly: set[int] = set()
        self.room = 1024
        self.rows_missing = 0
        self.dead = False

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, alone: bool, wants: Wants) -> Outputs:
        classes = [int(picture[0, 0, 0]) for picture in pictures]
        self.batches.append(classes)
        self.sizes.append(padded_size)
        self.alone.append(alone)
        self.wants.append(wants)
        self.entered.release()
        assert self.gate.wait(60)
        self._fail_if_told(set(classes), padded_size)
        scores = np.full((len(classes), CLASSES), 0.1 / (CLASSES - 1), np.float32)
        scores[range(len(classes)), classes] = 0.9
        scores[[each in self.nan for each in classes]] = np.nan
        return Outputs(np.log(scores)[self.rows_missing :], *_asked_for(classes, wants))

    def probe(self) -> None:
        self.probes += 1
        assert self.gate.wait(60)
        self._fail_if_told(set(), 1)

    def memory(self) -> tuple[int, int]:
        return 1000, 4000

    def _fail_if_told(self, classes: set[int], padded_size: int) -> None:
        if self.dead or classes & self.deadly:
            raise DeviceFault("told to be dead")
        if padded_size > self.room:
            raise OutOfMemory(f"told to have room for {self.room}")
        if classes & self.poison:
            raise RuntimeError("told to choke on this")

    async def under_way(self) -> None:
        """Return when a run that had not been waited for is on the device."""
        await asyncio.to_thread(self.entered.acquire)


def _asked_for(classes: Sequence[int], wants: Wants) -> tuple[NDArray[np.float32] | None, Evidence | None]:
    features = np.repeat(np.array(classes, np.float32)[:, None], CARD.feature_size, axis=1)
    labels = np.tile(np.arange(EVIDENCE_LABELS, dtype=np.int32), (len(classes), 1))
    labels[:, 0] = classes
    maps = np.zeros((*labels.shape, CARD.grid_size**2), np.float32)
    for picture, number in enumerate(classes):
        maps[picture, :, number % CARD.grid_size**2] = 1
    evidence = Evidence(labels, maps.reshape(*labels.shape, CARD.grid_size, CARD.grid_size))
    return features if wants & Wants.FEATURES else None, evidence if wants & Wants.EVIDENCE else None


def listening(path: Path) -> socket.socket:
    """A socket at ``path``, in place of one that may have been there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


@asynccontextmanager
async def running_engine(
    device: FakeDevice,
    path: Path,
    *,
    card: ModelCard = CARD,
    limit: int = 64,
    ladder: Sequence[int] = (1, 2, 4, 8),
    cost_s: float = 0.001,
    lanes: int = 1,
    ahead: int = 0,
) -> AsyncIterator[Engine]:
    """A real engine in this event loop that listens at ``path``; leaving ends it as the death of its process would."""
    engine = Engine(device, card, Queue(limit, Costs(dict.fromkeys(ladder, cost_s)), lanes, ahead))
    with listening(path) as listener:
        serving = asyncio.create_task(engine.serve(listener))
        try:
            yield engine
        finally:
            device.gate.set()
            serving.cancel()
            await asyncio.wait([serving])
            if not serving.cancelled():
                serving.exception()  # the test has seen to it
