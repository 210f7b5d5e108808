"""Runs on a GPU: while one computes, the next one's pictures travel, and nobody waits but who asked."""

import queue
import threading
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.classifier import Classifier
from models.graphs import Graph, current

DEPTH = 2
"""Runs at once: one computes, one travels."""


class Pipeline:
    """A graph for every batch size, and the way of pictures to it and of scores back.

    pictures -> pinned memory -> (copy stream) -> the device -> (compute stream) -> graph -> pinned memory -> scores

    ``run`` may be called by ``DEPTH`` threads at once. Each has a berth of its own, so that one's pictures travel while
    the other's are computed; the graphs, which share their memory, run one after the other on one stream. The host
    waits for a run's own end and for nothing else. Works on a CPU as well, where it only costs copies.
    """

    def __init__(self, classifier: Classifier, max_batch: int) -> None:
        self._graphs: dict[int, Graph] = {}
        self._classifier = classifier
        self._torch = torch.get_device_module(classifier.device)
        self._launching = threading.Lock()
        self._berths: queue.SimpleQueue[_Berth] = queue.SimpleQueue()
        with current(classifier.device):
            self._computing = self._torch.Stream()
            for _ in range(DEPTH):
                self._berths.put(_Berth(classifier, max_batch))

    def prepare(self, size: int) -> None:
        """Capture the graph of a size, once."""
        with self._launching:
            if size not in self._graphs:
                beside = next(iter(self._graphs.values()), None)
                self._graphs[size] = Graph(self._classifier, size, beside)

    def keep(self, sizes: Collection[int]) -> None:
        """Capture these sizes anew, the largest first, whose memory the smaller ones then find; forget all others."""
        self._graphs.clear()
        for size in sorted(sizes, reverse=True):
            self.prepare(size)

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int) -> NDArray[np.float32]:
        """Scores [len(pictures), classes] of pictures [S, S, 3], in a run of a size that was prepared."""
        with current(self._classifier.device):
            return self._run(pictures, self._graphs[padded_size])

    def _run(self, pictures: Sequence[NDArray[np.uint8]], graph: Graph) -> NDArray[np.float32]:
        count, berth = len(pictures), self._berths.get()
        try:
            for place, picture in enumerate(pictures):
                berth.pixels.numpy()[place] = picture
            with self._torch.stream(berth.copying):
                berth.landed[:count].copy_(berth.pixels[:count], non_blocking=True)
                berth.landing.record()
            with self._launching, self._torch.stream(self._computing):
                berth.landing.wait()
                graph.pixels[:count].copy_(berth.landed[:count])
                graph.replay()
                berth.scores[:count].copy_(graph.scores[:count], non_blocking=True)
                berth.done.record()
            berth.done.synchronize()
            return berth.scores[:count].numpy().copy()
        finally:
            self._berths.put(berth)


class _Berth:
    """What one run needs for itself: pinned memory at both ends, a place on the device, marks in the streams."""

    def __init__(self, classifier: Classifier, max_batch: int) -> None:
        on_gpu, side = classifier.device.type == "cuda", classifier.image_size
        backend = torch.get_device_module(classifier.device)
        self.pixels = torch.empty((max_batch, side, side, 3), dtype=torch.uint8, pin_memory=on_gpu)
        self.landed = torch.empty_like(self.pixels, device=classifier.device)
        self.scores = torch.empty((max_batch, len(classifier.labels)), pin_memory=on_gpu)
        self.copying = backend.Stream()
        self.landing = backend.Event()
        self.done = backend.Event(blocking=True) if on_gpu else backend.Event()  # blocking: sleeps, does not spin
