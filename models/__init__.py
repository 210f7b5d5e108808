"""VOLO, the Vision Outlooker (arXiv 2106.13112): build one, or load one that is trained.

>>> model = models.create_model("volo_d1", image_size=224, num_classes=1000)
>>> classifier = models.load_model("embedded")

Importing this package does not import torch; calling these does.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.classifier import Classifier
    from models.labels import Label
    from models.precision import Precision
    from models.volo import Volo, VoloConfig
    from models.zoo import Model

__all__ = ["create_model", "load_model"]


def create_model(variant: str | VoloConfig, image_size: int | None = None, num_classes: int | None = None) -> Volo:
    """A VOLO with random weights and the official names: float x [B, 3, S, S] -> logits [B, classes].

    Args:
        variant: a name, as "volo_d1", or a config.
        image_size: pixels on a side, S; by default the variant's (224 for volo_d1 to volo_d5).
        num_classes: by default the variant's (1000 for volo_d1 to volo_d5).

    Raises:
        ValueError: there is no such variant, or it cannot be built for that size.
    """
    from models.volo import VARIANTS, Volo

    if isinstance(variant, str) and variant not in VARIANTS:
        raise ValueError(f"no variant is called {variant!r}; there are {', '.join(VARIANTS)}")
    config = VARIANTS[variant] if isinstance(variant, str) else variant
    given: dict[str, Any] = {"image_size": image_size, "num_classes": num_classes}
    return Volo(replace(config, **{field: value for field, value in given.items() if value is not None}))


def load_model(
    source: str | Path,
    *,
    device: str = "cpu",
    labels: str | Path | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    sha256: str | None = None,
    precision: Precision = "auto",
) -> Classifier:
    """A trained model, ready to classify.

    Args:
        source: a name of the catalogue, as "volo_d1_224" or "embedded" (published weights are downloaded
            once), or the path of a checkpoint, whose shapes tell its variant, image size and classes.
        device: where it runs, in torch's words.
        labels: a file with the classes' names (see ``labels.load_labels``). Without it they are the
            catalogue's, those saved in the checkpoint, or ImageNet's if there are 1000 classes; others are
            not guessed.
        image_size: pixels on a side, if it is to be another than the checkpoint's.
        crop_pct: by default what is saved in the checkpoint, or the catalogue's for this variant and size,
            otherwise 0.96.
        sha256: what the file's SHA-256 must be, in hexadecimal.
        precision: what it computes in; "auto" is bfloat16 where the device does that natively, else float32.

    Raises:
        UnknownModel: ``source`` is neither in the catalogue nor a file.
        DownloadError: the weights could not be had, or are not those pinned.
        WeightsError: the file is torn, or holds no known VOLO.
        LabelsError: the classes have no names, or not as many.
        ValueError: the model cannot be built for ``image_size``, or the precision is not for this device.
    """
    from models import weights, zoo
    from models.classifier import Classifier

    found = zoo.resolve(source)
    path = _checkpoint(found, sha256)
    if isinstance(found, Path):
        name, (variant, model) = path.name.partition(".")[0], weights.load(path, image_size)
    else:
        size = found.image_size if image_size is None else image_size
        name, (variant, model) = found.name, _published(path, size, found.variant)
    if crop_pct is None:
        crop_pct = weights.read_crop_pct(path) or zoo.crop_pct(variant, model.config.image_size)
    return Classifier(
        model,
        name=name,
        crop_pct=crop_pct,
        labels=_labels(found, path, model.config.num_classes, labels),
        device=device,
        precision=precision,
    )


def __getattr__(room: str) -> ModuleType:
    """``models.preprocess`` and the like, without an import of their own."""
    if room.startswith("_"):
        raise AttributeError(room)
    try:
        return import_module(f"models.{room}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"models has no {room!r}") from error


def _checkpoint(found: Model | Path, sha256: str | None) -> Path:
    from models.download import fetch, verify

    weights = found if isinstance(found, Path) else found.weights
    return verify(weights, sha256) if isinstance(weights, Path) else fetch(weights, sha256)


def _published(path: Path, image_size: int, variant: str) -> tuple[str, Volo]:
    from models import weights

    try:
        return weights.load(path, image_size, variant)
    except weights.WeightsError as error:
        raise weights.WeightsError(f"{error}; if it is damaged, delete it to have it downloaded again") from error


def _labels(found: Model | Path, path: Path, count: int, given: str | Path | None) -> tuple[Label, ...]:
    from models.labels import IMAGENET_1K, LabelsError, check_count, load_labels
    from models.weights import read_labels

    if given is not None:
        return load_labels(given, count)
    if not isinstance(found, Path):
        return load_labels(found.label_file, count)
    if (saved := read_labels(path)) is not None:
        return check_count(saved, count, path)
    if count == 1000:
        return load_labels(IMAGENET_1K)
    raise LabelsError(f"{path} has {count} classes and no names for them: name them in a file, labels=")
