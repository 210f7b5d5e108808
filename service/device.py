"""Runs batches of pictures on one torch device, in runs of a few fixed sizes whose cost is known."""

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models import load_model
from models.classifier import Classifier
from models.prediction import softmax
from service import cgroups
from service.outputs import EVIDENCE_LABELS, Evidence, Outputs, Wants
from service.pipeline import DEPTH, Pipeline
from service.settings import Settings

TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_IN_HALF = 3e-2
"""How far a known picture's scores may be from what they were: far above rounding, far below another answer."""
LONG_S = 0.1
"""A run that takes so long needs no second look to know how long."""
WORTHWHILE = 0.95
"""A lone run gets all cores if that takes no more than this part of the time on one."""


class DeviceMissing(Exception):
    """A device was asked for that this machine does not have."""


class OutOfMemory(Exception):
    """The device has no memory for a run of this size; a smaller one may fit."""


class DeviceFault(Exception):
    """The device is of no use to this process any more."""


def resolve_device(name: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        DeviceMissing: it is not there. There is no silent fall to another one.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceMissing(
            f"The device {name} was asked for, but torch {torch.__version__} sees {count} CUDA devices."
        )
    return device


def load_classifier(settings: Settings) -> Classifier:
    """The model that is set, on the device that is set.

    Raises:
        DeviceMissing: there is no such device.
        DeviceFault, OutOfMemory: it is of no use, or has no memory for the model.
        ValueError, OSError: the model cannot be had; the message says why.
    """
    where = resolve_device(settings.device)
    with _device_errors():
        return load_model(
            settings.model,
            device=str(where),
            labels=settings.labels,
            sha256=settings.weights_sha256,
            precision=settings.precision,
        )


class Device:
    """A classifier on its device, behind plain arrays.

    On a CPU ``lanes`` runs go on at once, one on each of its ``cores``: that gives more pictures a second than all
    cores together on one run after the other. On a GPU there is one lane, and ``ahead`` more runs are on their way to
    it. ``padded``: runs have only the sizes that were warmed up, because only for these there are graphs.
    ``patience_s`` bounds a run: larger ones that would take longer are not offered. A lone run keeps ``threads_alone``
    cores busy: all, if the warm-up finds that worth it.
    """

    def __init__(self, classifier: Classifier, max_batch: int, patience_s: float, cores: int = 1) -> None:
        """Raise as ``run`` does."""
        self._classifier = classifier
        self._max_batch = max_batch
        self._patience_s = patience_s
        self.threads_alone = 1
        self.padded = classifier.device.type == "cuda"
        with _device_errors():
            self._pipeline = Pipeline(classifier, max_batch) if self.padded else None
        self.lanes, self.ahead = (1, DEPTH - 1) if self.padded else (cores, 0)
        self._tolerance = TOLERANCE.get(classifier.dtype, TOLERANCE_IN_HALF)
        self._sample = classifier.crop(_sample_picture())
        self._prepare(1)
        self._expected = softmax(self.run([self._sample], 1).logits[0])

    def warm_up(self, rounds: int = 1) -> dict[int, float]:
        """Run every worthwhile size with the known picture first and last in it: median seconds for each.

        ``rounds`` are for short runs; long ones, which others are waiting for and noise hardly touches, are timed once.

        Raises:
            DeviceFault: the known picture got another answer than alone.
            OutOfMemory: there is no memory for one picture.
        """
        costs: dict[int, float] = {}
        for size in ladder(self._max_batch):
            try:
                self._prepare(size)
                first_s = self._timed(size)  # allocates and compiles
                seconds = statistics.median(self._timed(size) for _ in range(rounds if first_s < LONG_S else 1))
            except OutOfMemory:
                if not costs:
                    raise
                break
            if costs and seconds > self._patience_s:
                break
            costs[size] = seconds
            if size >= 4 * most_productive(costs):
                break
        if self.lanes > 1:
            self._try_all_cores(rounds, costs[1])
        kept = {size: seconds for size, seconds in costs.items() if size <= most_productive(costs)}
        if self._pipeline:
            with _device_errors():
                self._pipeline.keep(kept)
        return kept

    def probe(self) -> None:
        """Raise DeviceFault unless the known picture gets its known answer."""
        self._check(1)

    def run(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        padded_size: int,
        alone: bool = False,
        wants: Wants = Wants.NONE,
    ) -> Outputs:
        """What the model says of pictures [S, S, 3], in a run of ``padded_size`` places.

        ``alone``: no other run is under way, so this one may have all cores.

        Raises:
            OutOfMemory: the device has no memory for a run of this size.
            DeviceFault: the device is of no use any more.
        """
        with _device_errors():
            if self._pipeline:
                return self._pipeline.run(pictures, padded_size, wants)
            threads = self.threads_alone if alone else 1
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)  # of this thread
            return self._outputs(torch.from_numpy(np.stack(pictures)), wants)

    def memory(self) -> tuple[int, int]:
        """Bytes of the device's memory that this process has taken, and that there are; on a CPU, resident ones."""
        device = self._classifier.device
        if device.type == "cuda":
            return torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)[1]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), cgroups.total_memory()

    def _outputs(self, pixels: torch.Tensor, wants: Wants) -> Outputs:
        seen = self._classifier.see(pixels)
        features = evidence = None
        if wants & Wants.FEATURES:
            features = self._classifier.features(seen).numpy()
        if wants & Wants.EVIDENCE:
            labels, maps = self._classifier.evidence(seen, min(EVIDENCE_LABELS, seen.logits.shape[1]))
            evidence = Evidence(labels.int().numpy(), maps.numpy())
        return Outputs(seen.logits.numpy(), features, evidence)

    def _prepare(self, size: int) -> None:
        if self._pipeline:
            with _device_errors():
                self._pipeline.prepare(size)

    def _try_all_cores(self, rounds: int, on_one_s: float) -> None:
        """Give lone runs all cores if they are worth it: a small model's layers are over before a thread wakes up."""
        self.threads_alone = self.lanes
        self._check(1, alone=True)
        seconds = statistics.median(self._timed(1, alone=True) for _ in range(rounds))
        if seconds > WORTHWHILE * on_one_s:
            self.threads_alone = 1

    def _timed(self, size: int, alone: bool = False) -> float:
        started = time.perf_counter()
        self._check(size, alone)
        return time.perf_counter() - started

    def _check(self, size: int, alone: bool = False) -> None:
        noise = np.zeros_like(self._sample)
        pictures = [self._sample, *[noise] * (size - 2), *[self._sample] * (size > 1)]
        scores = softmax(self.run(pictures, size, alone).logits)
        for place in {0, size - 1}:
            off = np.abs(scores[place] - self._expected).max()
            if not off <= self._tolerance:  # so that NaN fails too
                raise DeviceFault(f"A known picture's scores are off by {off:.2g} at place {place} of {size}.")


@contextmanager
def _device_errors() -> Iterator[None]:
    """Torch's errors in our words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory(str(error)) from error
    except torch.AcceleratorError as error:
        raise DeviceFault(str(error)) from error


def most_productive(costs: Mapping[int, float]) -> int:
    """The size that gives the most pictures a second, given the seconds of each: larger ones would only make pictures
    wait for each other."""
    return max(costs, key=lambda size: size / costs[size])


def ladder(max_batch: int) -> list[int]:
    """The batch sizes that are tried: powers of two, and the largest."""
    return [*(2**step for step in range(max_batch.bit_length()) if 2**step < max_batch), max_batch]


def _sample_picture() -> Image.Image:
    with as_file(files("models.data") / "samples" / "cat.jpg") as path, Image.open(path) as image:
        return image.convert("RGB")
