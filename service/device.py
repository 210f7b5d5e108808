"""Runs batches of pictures on one torch device, in runs of a few fixed sizes whose cost is known."""

import statistics
import time
from collections.abc import Sequence
from importlib.resources import as_file, files

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models import load_model
from models.classifier import Classifier
from service.settings import Settings

TOLERANCE = 1e-3
"""How far a known picture's scores may be from what they were: far above rounding, far below another answer."""


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
        ValueError, OSError: the model cannot be had; the message says why.
    """
    where = resolve_device(settings.device)
    return load_model(settings.model, device=str(where), labels=settings.labels, sha256=settings.weights_sha256)


class Device:
    """A classifier on its device, behind plain arrays.

    ``lanes`` runs may be under way at once, each in a thread of its own. ``patience_s`` bounds a run: larger batches
    that would take longer are not offered.
    """

    lanes = 1

    def __init__(self, classifier: Classifier, max_batch: int, patience_s: float) -> None:
        """Raise as ``run`` does."""
        self._classifier = classifier
        self._max_batch = max_batch
        self._patience_s = patience_s
        self._sample = classifier.crop(_sample_picture())
        self._staging = torch.empty(
            (max_batch, *self._sample.shape), dtype=torch.uint8, pin_memory=classifier.device.type == "cuda"
        )
        self._expected = self.run([self._sample], 1)[0]

    def warm_up(self, rounds: int = 1) -> dict[int, float]:
        """Run every batch size with the known picture first and last in it: median seconds for each size.

        Raises:
            DeviceFault: the known picture got another answer than alone.
            OutOfMemory: there is no memory for one picture.
        """
        costs: dict[int, float] = {}
        for size in ladder(self._max_batch):
            try:
                self._check(size)  # the first run of a size allocates and compiles
                seconds = statistics.median(self._timed(size) for _ in range(rounds))
            except OutOfMemory:
                if not costs:
                    raise
                break
            if seconds > self._patience_s:
                return costs or {size: seconds}
            costs[size] = seconds
        return costs

    def probe(self) -> None:
        """Raise DeviceFault unless the known picture gets its known answer."""
        self._check(1)

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int) -> NDArray[np.float32]:
        """Score pictures [S, S, 3] in a run of ``padded_size`` places: probabilities [len(pictures), classes].

        Raises:
            OutOfMemory: the device has no memory for a run of this size.
            DeviceFault: the device is of no use any more.
        """
        batch = self._staging[:padded_size]
        places = batch.numpy()
        for place, picture in enumerate(pictures):
            places[place] = picture
        try:
            return self._classifier.scores(batch)[: len(pictures)].cpu().numpy()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceFault(str(error)) from error

    def _timed(self, size: int) -> float:
        started = time.perf_counter()
        self._check(size)
        return time.perf_counter() - started

    def _check(self, size: int) -> None:
        noise = np.zeros_like(self._sample)
        pictures = [self._sample, *[noise] * (size - 2), *[self._sample] * (size > 1)]
        scores = self.run(pictures, size)
        for place in {0, size - 1}:
            off = np.abs(scores[place] - self._expected).max()
            if not off <= TOLERANCE:  # so that NaN fails too
                raise DeviceFault(f"A known picture's scores are off by {off:.2g} at place {place} of {size}.")


def ladder(max_batch: int) -> list[int]:
    """The batch sizes that are run: powers of two, and the largest."""
    return [*(2**step for step in range(max_batch.bit_length()) if 2**step < max_batch), max_batch]


def _sample_picture() -> Image.Image:
    with as_file(files("models.data") / "samples" / "cat.jpg") as path, Image.open(path) as image:
        return image.convert("RGB")
