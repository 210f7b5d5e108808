"""Several runs at once on one thread each, against one run that has all threads: what the engine decides on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from models.classifier import Classifier
from models.graphs import Graph
from service.bench.timing import alternate


@dataclass(frozen=True)
class Lanes:
    """Pictures a second, both ways, and the ratio: that of the medians of rounds taken in turn."""

    batch: int
    threads: int
    one_run: float
    one_thread_runs: float
    ratio: float


def compare(classifier: Classifier, batch: int, threads: int, seconds: float) -> Lanes:
    """Time both ways in turn; each does ``threads`` batches."""
    graphs = [Graph(classifier, batch) for _ in range(threads)]
    together = threading.Barrier(threads)  # so that each thread has its lane, and sets its own number of threads
    with ThreadPoolExecutor(threads) as pool:

        def in_lanes() -> None:
            list(pool.map(partial(_in_lane, together), graphs))

        def one_by_one() -> None:
            torch.set_num_threads(threads)
            for graph in graphs:
                graph.replay()

        ways: Sequence[Callable[[], None]] = (one_by_one, in_lanes)
        whole, lanes = alternate(ways, seconds, torch.device("cpu"))
    torch.set_num_threads(threads)
    pictures = batch * threads
    return Lanes(batch, threads, pictures / whole.median_s, pictures / lanes.median_s, lanes.against(whole))


def _in_lane(together: threading.Barrier, graph: Graph) -> None:
    torch.set_num_threads(1)
    together.wait()
    graph.replay()
