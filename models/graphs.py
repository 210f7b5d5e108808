"""A batch size's whole forward as one launch: a CUDA graph, whose kernels the processor need not start one by one."""

from contextlib import AbstractContextManager, nullcontext

import torch

from models.classifier import Classifier, Seen

WARM_UPS = 3
"""Runs before the capture, in which libraries choose their kernels and allocate what they keep."""


class Graph:
    """The classifier's ``see`` for one batch size, over buffers that stay where they are.

    ``pixels`` [B, S, S, 3] uint8 is read and ``seen`` written by every ``replay``, in the order of the current stream.
    On a device without graphs a replay is a plain forward, so that what is built on it can be tested there.
    """

    _apart: torch.cuda.Stream
    """The stream of captures."""

    def __init__(self, classifier: Classifier, batch_size: int, beside: "Graph | None" = None) -> None:
        """Capture; graphs ``beside`` each other share memory, and so must never run at the same time.

        Raises:
            torch.OutOfMemoryError: there is no memory for this size.
        """
        side = classifier.image_size
        self._classifier = classifier
        self._graph: torch.cuda.CUDAGraph | None = None
        with current(classifier.device):
            self.pixels = torch.zeros((batch_size, side, side, 3), dtype=torch.uint8, device=classifier.device)
            if classifier.device.type == "cuda":
                # one for all that share memory, which is kept by stream
                self._apart = beside._apart if beside else torch.cuda.Stream()
                self._graph, self.seen = self._captured(beside)
            else:
                self.seen = classifier.see(self.pixels)

    @torch.inference_mode()
    def replay(self) -> None:
        """Start the forward on the current stream; nobody waits for it."""
        if self._graph:
            self._graph.replay()
        else:
            for ours, new in zip(self.seen, self._classifier.see(self.pixels), strict=True):
                ours.copy_(new)

    def _captured(self, beside: "Graph | None") -> tuple[torch.cuda.CUDAGraph, Seen]:
        self._apart.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._apart):
            for _ in range(WARM_UPS):
                self._classifier.see(self.pixels)
        torch.cuda.current_stream().wait_stream(self._apart)
        graph = torch.cuda.CUDAGraph()
        shared = beside._graph.pool() if beside and beside._graph else None
        with torch.cuda.graph(graph, pool=shared, stream=self._apart):
            seen = self._classifier.see(self.pixels)
        return graph, seen


def current(device: torch.device) -> AbstractContextManager[object]:
    """Within it new streams, graphs and kernels are this device's: CUDA has a current one for each thread."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
