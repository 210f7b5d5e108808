"""What is timed: a model's forward, and the matrix product that says what the device could do."""

from __future__ import annotations

from pathlib import Path

import torch

import models
from models.classifier import Classifier
from models.precision import Precision
from models.zoo import Model, resolve
from service.bench.timing import Run, timed

_SMALLEST, _LARGEST = 256, 8192
"""Sides of the matrix product: large enough for many cores, and not too long where a precision is emulated."""
_LONG_S = 0.02


def classifier(source: str, device: torch.device, precision: Precision) -> Classifier:
    """A model as fast as the real one: published weights are not downloaded for this, but random.

    Raises:
        ValueError, OSError: there is no such model, or it cannot be had; the message says why.
    """
    found = resolve(source)
    if not isinstance(found, Model) or isinstance(found.weights, Path):
        return models.load_model(source, device=str(device), precision=precision)
    network = models.create_model(found.variant, found.image_size, len(found.labels))
    return Classifier(
        network, name=found.name, crop_pct=found.crop_pct, labels=found.labels, device=device, precision=precision
    )


def product(device: torch.device, dtype: torch.dtype) -> tuple[Run, float]:
    """A square matrix product that keeps the whole device busy, and its multiply-adds."""
    side = _SMALLEST
    run = _product(side, device, dtype)
    while side < _LARGEST and timed(run, 2, device)[1] < _LONG_S:
        side *= 2
        run = _product(side, device, dtype)
    return run, float(side**3)


def _product(side: int, device: torch.device, dtype: torch.dtype) -> Run:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)
