"""timm's own VOLO, as those who know timm would run it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from models.classifier import Classifier
from service.bench.timing import Run


class NoContender(Exception):
    """timm is not here, or has no such model; the message says which."""


def timm_forward(classifier: Classifier, batch: int) -> Run:
    """The forward of timm's model of the same name, size and precision, on pictures that are normalised already.

    On CUDA it is compiled, with everything that torch.compile finds by itself; on the CPU it runs as it is.

    Raises:
        NoContender: there is none.
    """
    model = _model(classifier).eval().requires_grad_(False).to(classifier.device, classifier.dtype)
    side = classifier.image_size
    pictures = torch.randn(batch, 3, side, side, device=classifier.device, dtype=classifier.dtype)
    if classifier.device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        model = torch.compile(model, mode="max-autotune", dynamic=False)

    def run() -> None:
        with torch.inference_mode():
            model(pictures)

    return run


def _model(classifier: Classifier) -> Any:
    try:
        timm: Any = import_module("timm")
    except (ImportError, RuntimeError) as error:  # the latter where its torchvision is for another torch
        raise NoContender(f"timm cannot be imported ({error}): pip install timm") from None
    # of a catalogue's name, as volo_d1_224: timm calls its models likewise
    if not timm.is_model(classifier.name):
        raise NoContender(f"timm has no model {classifier.name}")
    return timm.create_model(classifier.name, pretrained=False)
