"""Runs on a GPU: while one computes, the next one's pictures travel, and nobody waits but who asked."""

import queue
import threading
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.classifier import Classifier, Seen
from models.graphs import Graph, current
from service.outputs import EVIDENCE_LABELS, Evidence, Outputs, Wants

DEPTH = 2
"""Runs at once: one computes, one travels."""


class Pipeline:
    """A graph for every batch size, and the way of pictures to it and of scores back.

    pictures -> pinned memory -> (copy stream) -> the device -> (compute stream) -> graph -> pinned memory -> outputs

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

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, wants: Wants = Wants.NONE) -> Outputs:
        """What the model says of pictures [S, S, 3], in a run of a size that was prepared."""
        with current(self._classifier.device):
            return self._run(pictures, self._graphs[padded_size], wants)

    def _run(self, pictures: Sequence[NDArray[np.uint8]], graph: Graph, wants: Wants) -> Outputs:
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
                berth.take(self._classifier, Seen(*(part[:count] for part in graph.seen)), wants)
                berth.done.record()
            berth.done.synchronize()
            return berth.outputs(count, wants)
        finally:
            self._berths.put(berth)


class _Berth:
    """What one run needs for itself: pinned memory at both ends, a place on the device, marks in the streams."""

    def __init__(self, classifier: Classifier, max_batch: int) -> None:
        on_gpu, side, config = classifier.device.type == "cuda", classifier.image_size, classifier.model.config
        labels = min(EVIDENCE_LABELS, config.num_classes)
        backend = torch.get_device_module(classifier.device)
        self.pixels = torch.empty((max_batch, side, side, 3), dtype=torch.uint8, pin_memory=on_gpu)
        self.landed = torch.empty_like(self.pixels, device=classifier.device)
        self._logits = torch.empty((max_batch, config.num_classes), pin_memory=on_gpu)
        self._features = torch.empty((max_batch, config.dims[-1]), pin_memory=on_gpu)
        self._labels = torch.empty((max_batch, labels), dtype=torch.int32, pin_memory=on_gpu)
        self._maps = torch.empty((max_batch, labels, config.grid_size, config.grid_size), pin_memory=on_gpu)
        self.copying = backend.Stream()
        self.landing = backend.Event()
        self.done = backend.Event(blocking=True) if on_gpu else backend.Event()  # blocking: sleeps, does not spin

    def take(self, classifier: Classifier, seen: Seen, wants: Wants) -> None:
        """Have what is wanted copied out, in the order of the current stream."""
        count = len(seen.logits)
        self._logits[:count].copy_(seen.logits, non_blocking=True)
        if wants & Wants.FEATURES:
            self._features[:count].copy_(classifier.features(seen), non_blocking=True)
        if wants & Wants.EVIDENCE:
            labels, maps = classifier.evidence(seen, self._labels.shape[1])
            self._labels[:count].copy_(labels.int(), non_blocking=True)
            self._maps[:count].copy_(maps, non_blocking=True)

    def outputs(self, count: int, wants: Wants) -> Outputs:
        """What was copied out for the first ``count`` pictures."""
        logits, features, labels, maps = (
            part[:count].numpy() for part in (self._logits, self._features, self._labels, self._maps)
        )
        return Outputs(
            logits.copy(),
            features.copy() if wants & Wants.FEATURES else None,
            Evidence(labels.copy(), maps.copy()) if wants & Wants.EVIDENCE else None,
        )
