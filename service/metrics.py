"""What is counted and measured. docs/metrics.md says what each is good for."""

from collections.abc import Iterable
from functools import cache
from typing import get_args

from service.errors import Reason
from service.multiprocess import Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BYTES = (1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7)
PIXELS = (1e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

requests = Counter("volo_requests_total", "Requests that have ended.", ["endpoint", "model", "outcome"])
request_seconds = Histogram(
    "volo_request_seconds",
    "From a request's headers to the end of its answer, of requests that ended ok.",
    ["endpoint"],
    buckets=SECONDS,
)
stage_seconds = Histogram(
    "volo_stage_seconds",
    "Time in one stage: receive (the body), decode (to a crop), queue (for the device), device (the model's run), "
    "respond (from the answer's first byte to its last), of requests that ended ok.",
    ["model", "stage"],
    buckets=SECONDS,
)
requests_in_flight = Gauge("volo_requests_in_flight", "Requests that have not ended.", multiprocess_mode="livesum")
rejections = Counter(
    "volo_rejections_total",
    "What was refused at once: queue_full, deadline (it cannot be met), no_slot (too many are under way), memory (of "
    "bodies), connections (or requests on one, or open files).",
    ["model", "reason"],
)

batch_lines = Counter(
    "volo_batch_lines_total", "Pictures of /predict/batch whose line is known, by its outcome.", ["model", "outcome"]
)
picture_bytes = Histogram("volo_picture_bytes", "Size of a picture as sent.", buckets=BYTES)
picture_pixels = Histogram("volo_picture_pixels", "Width times height of a picture as sent.", buckets=PIXELS)
picture_formats = Counter("volo_picture_formats_total", "Pictures that were answered, by their format.", ["format"])
top1_score = Histogram("volo_top1_score", "Probability of a picture's likeliest label.", ["model"], buckets=TENTHS)

pictures = Counter("volo_pictures_total", "Pictures that went through the model.", ["model"])
batches = Counter("volo_batches_total", "Runs of the model.", ["model"])
batch_size = Histogram("volo_batch_size", "Pictures in a run of the model.", ["model"], buckets=SIZES)
padded_places = Counter(
    "volo_padded_places_total", "Places of a run filled with nothing, to reach its size.", ["model"]
)
dropped_pictures = Counter(
    "volo_dropped_pictures_total",
    "Pictures let in and then not computed: cancelled (the caller left), expired (the deadline came too near).",
    ["model", "reason"],
)
queue_depth = Gauge("volo_queue_depth", "Pictures that wait for the device.", ["model"], multiprocess_mode="livesum")
background_depth = Gauge(
    "volo_background_depth", "Pictures that wait in the background.", ["model"], multiprocess_mode="livesum"
)
queue_limit = Gauge("volo_queue_limit", "Most pictures that may wait.", ["model"], multiprocess_mode="livemax")
batch_limit = Gauge(
    "volo_batch_limit",
    "Most pictures in a run of the model; it falls when the device has no memory for so many.",
    ["model"],
    multiprocess_mode="livemin",
)
predicted_wait = Gauge(
    "volo_predicted_wait_seconds",
    "How long a picture that came now would wait for the device.",
    ["model"],
    multiprocess_mode="livemax",
)
pictures_in_run = Gauge(
    "volo_pictures_in_run", "Pictures in runs that are under way.", ["model"], multiprocess_mode="livesum"
)
slots = Gauge("volo_slots", "Slots of shared memory for pictures under way.", ["model"], multiprocess_mode="livesum")
slots_lent = Gauge("volo_slots_lent", "Slots that are lent to pictures.", ["model"], multiprocess_mode="livesum")
abandoned_decodes = Gauge(
    "volo_abandoned_decodes",
    "Pictures that are still being decoded though nobody waits for them any more.",
    ["model"],
    multiprocess_mode="livesum",
)

device_busy_seconds = Counter(
    "volo_device_busy_seconds_total",
    "Time in runs of the model. Where several go on at once, beside each other, each counts as its share of the whole.",
    ["model", "device"],
)
device_memory_used = Gauge(
    "volo_device_memory_used_bytes",
    "Memory of the device that an engine has taken; on a CPU, its resident memory.",
    ["model", "device"],
    multiprocess_mode="livesum",
)
device_memory_total = Gauge(
    "volo_device_memory_total_bytes", "Memory that the device has.", ["model", "device"], multiprocess_mode="livemax"
)
model_load_seconds = Gauge(
    "volo_model_load_seconds", "How long the model's last load took.", ["model"], multiprocess_mode="livemostrecent"
)
model_warm_up_seconds = Gauge(
    "volo_model_warm_up_seconds", "How long the warm-up after it took.", ["model"], multiprocess_mode="livemostrecent"
)
engine_restarts = Counter("volo_engine_restarts_total", "Engines started in place of one that ended.", ["model"])
worker_restarts = Counter("volo_worker_restarts_total", "HTTP workers started in place of one that ended.")
replayed_pictures = Counter(
    "volo_replayed_pictures_total", "Pictures sent again, to the engine that took a dead one's place.", ["model"]
)

# What is looked up by label values is looked up once: all of these are names of ours, and few.
requests_of = cache(requests.labels)
request_seconds_of = cache(request_seconds.labels)
stage_seconds_of = cache(stage_seconds.labels)
picture_formats_of = cache(picture_formats.labels)
top1_score_of = cache(top1_score.labels)
batch_lines_of = cache(batch_lines.labels)


def expect(endpoint: str, model: str, outcomes: Iterable[str]) -> None:
    """Have these there from the start, as 0: a counter that appears with its first step hides it from ``rate``."""
    for outcome in outcomes:
        requests.labels(endpoint, model, outcome)


def expect_rejections(model: str) -> None:
    """The same for these."""
    for reason in get_args(Reason):
        rejections.labels(model, reason)


class OfEngine:
    """What an engine counts, under its model's name and its device's. All of it is there from the start, as 0."""

    def __init__(self, model: str, device: str, queue_limit_: int) -> None:
        queue_limit.labels(model).set(queue_limit_)
        self._batch_limit = batch_limit.labels(model)
        self._queue_depth = queue_depth.labels(model)
        self._background_depth = background_depth.labels(model)
        self._predicted_wait = predicted_wait.labels(model)
        self._pictures_in_run = pictures_in_run.labels(model)
        self._pictures = pictures.labels(model)
        self._batches = batches.labels(model)
        self._batch_size = batch_size.labels(model)
        self._padded_places = padded_places.labels(model)
        self._busy_seconds = device_busy_seconds.labels(model, device)
        self._memory_used = device_memory_used.labels(model, device)
        self._memory_total = device_memory_total.labels(model, device)
        self.cancelled = dropped_pictures.labels(model, "cancelled")
        self.expired = dropped_pictures.labels(model, "expired")

    def ran(self, count: int, size: int) -> None:
        """A run of ``size`` places with so many pictures has ended."""
        self._batches.inc()
        self._pictures.inc(count)
        self._batch_size.observe(count)
        self._padded_places.inc(size - count)

    def runs_at_most(self, count: int) -> None:
        """There is room for so many pictures in a run."""
        self._batch_limit.set(count)

    def busy(self, seconds: float) -> None:
        """The device was at work for so long."""
        self._busy_seconds.inc(seconds)

    def waits(self, depth: int, background_depth: int, predicted_s: float, in_run: int) -> None:
        """How many pictures wait, how long one that came now would, and how many are on the device."""
        self._queue_depth.set(depth)
        self._background_depth.set(background_depth)
        self._predicted_wait.set(predicted_s)
        self._pictures_in_run.set(in_run)

    def memory(self, used: int, total: int) -> None:
        """How many of the device's bytes are taken by this engine, and how many there are."""
        self._memory_used.set(used)
        self._memory_total.set(total)
