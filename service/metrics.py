"""What Prometheus is told. Several processes count; `/metrics` on any of them gives their one sum."""

import atexit
import os
import shutil
import tempfile

# prometheus_client looks for its directory when it is imported: the first of our processes makes one, and those that
# it starts inherit it.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = _ours = tempfile.mkdtemp(prefix="volo-metrics-")
else:
    _ours = ""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

requests = Counter("volo_requests_total", "Requests answered.", ["endpoint", "model", "outcome"])
request_seconds = Histogram(
    "volo_request_seconds",
    "From a request's headers to the end of its answer.",
    ["endpoint"],
    buckets=SECONDS,
)
stage_seconds = Histogram(
    "volo_stage_seconds",
    "Time in one stage: receive (the body), decode (to a crop), queue (for the device), device (the model's run).",
    ["stage"],
    buckets=SECONDS,
)
pictures = Counter("volo_pictures_total", "Pictures that went through the model.", ["model"])
batches = Counter("volo_batches_total", "Runs of the model.", ["model"])
batch_size = Histogram("volo_batch_size", "Pictures in a run of the model.", ["model"], buckets=SIZES)
padded_places = Counter(
    "volo_padded_places_total", "Places of a run filled with nothing, to reach its size.", ["model"]
)
queue_depth = Gauge("volo_queue_depth", "Pictures that wait for the device.", ["model"], multiprocess_mode="livesum")
engine_restarts = Counter("volo_engine_restarts_total", "Engines started in place of one that ended.", ["model"])


class OfModel:
    """What an engine counts, under its model's name."""

    def __init__(self, model: str) -> None:
        self.queue_depth = queue_depth.labels(model)
        self._pictures = pictures.labels(model)
        self._batches = batches.labels(model)
        self._batch_size = batch_size.labels(model)
        self._padded_places = padded_places.labels(model)

    def ran(self, count: int, size: int) -> None:
        """A run of ``size`` places with so many pictures has ended."""
        self._batches.inc()
        self._pictures.inc(count)
        self._batch_size.observe(count)
        self._padded_places.inc(size - count)


def exposition() -> bytes:
    """All processes' metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget(pid: int) -> None:
    """Drop the gauges of a process that ended; what it counted stays."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


@atexit.register
def remove() -> None:
    """Drop all that was counted, because the service is over; a directory that somebody else made stays."""
    if _ours:
        shutil.rmtree(_ours, ignore_errors=True)
