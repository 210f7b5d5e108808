"""The catalogue: the eleven published VOLO checkpoints and the embedded one, as data.

Nothing here imports torch until a model's cost is asked for: command line and HTTP workers read it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from models.labels import DATA, IMAGENET_1K, TINY_IMAGENET, Label, load_labels

if TYPE_CHECKING:
    from models.cost import Cost

_RELEASE = "https://github.com/sail-sg/volo/releases/download/volo_1"
_DEFAULT_CROP_PCT = 0.96  # that of every published model at 224 pixels


class UnknownModel(ValueError):
    """There is no model of that name; the message says which there are."""


@dataclass(frozen=True)
class Remote:
    """Where published weights are: a repository of the Hugging Face hub, and the authors' own file."""

    hub_repo: str
    release_url: str
    hub_file: str = "model.safetensors"


@dataclass(frozen=True)
class Model:
    """An entry of the catalogue.

    Pictures are resized to ``image_size / crop_pct`` pixels on the shorter side, then cropped to
    ``image_size`` square. ``top1`` is the accuracy in percent on the validation pictures of the data that the
    labels belong to.
    """

    name: str
    variant: str
    image_size: int
    crop_pct: float
    label_file: Path
    weights: Path | Remote
    top1: float | None = None

    @property
    def labels(self) -> tuple[Label, ...]:
        """The classes, in the order of the scores."""
        return load_labels(self.label_file)

    @property
    def cost(self) -> Cost:
        """Parameters and multiply-adds. Imports torch."""
        from models.cost import count
        from models.volo import VARIANTS

        config = replace(VARIANTS[self.variant], image_size=self.image_size, num_classes=len(self.labels))
        return count(config)


class Row(NamedTuple):
    """A line of the catalogue's table. ``top1`` is in percent, ``source`` the hub's repository or a file."""

    name: str
    image_size: int
    crop_pct: float
    classes: int
    parameters: int
    multiply_adds: int
    top1: float | None
    source: str


def _published(variant: str, image_size: int, crop_pct: float, top1: float, release: str) -> Model:
    name = f"volo_{variant}_{image_size}"
    weights = Remote(f"timm/{name}.sail_in1k", f"{_RELEASE}/{release}.pth.tar")
    return Model(name, f"volo_{variant}", image_size, crop_pct, IMAGENET_1K, weights, top1)


# Accuracies as published by the authors (github.com/sail-sg/volo), with the crops they rest on.
_MODELS = (
    _published("d1", 224, 0.96, 84.2, "d1_224_84.2"),
    _published("d1", 384, 1.0, 85.2, "d1_384_85.2"),
    _published("d2", 224, 0.96, 85.2, "d2_224_85.2"),
    _published("d2", 384, 1.0, 86.0, "d2_384_86.0"),
    _published("d3", 224, 0.96, 85.4, "d3_224_85.4"),
    _published("d3", 448, 1.0, 86.3, "d3_448_86.3"),
    _published("d4", 224, 0.96, 85.7, "d4_224_85.7"),
    _published("d4", 448, 1.15, 86.8, "d4_448_86.79"),
    _published("d5", 224, 0.96, 86.1, "d5_224_86.10"),
    _published("d5", 448, 1.15, 87.0, "d5_448_87.0"),
    _published("d5", 512, 1.15, 87.1, "d5_512_87.07"),
    Model("embedded", "volo_nano", 64, 1.0, TINY_IMAGENET, DATA / "embedded.safetensors", top1=22.3),
)
CATALOGUE: Mapping[str, Model] = MappingProxyType({model.name: model for model in _MODELS})


def resolve(source: str | Path) -> Model | Path:
    """What ``source`` names: an entry of the catalogue, or else a file with a checkpoint.

    Raises:
        UnknownModel: neither; the message says which models there are, and which was probably meant.
    """
    if (name := str(source)) in CATALOGUE:
        return CATALOGUE[name]
    if Path(source).is_file():
        return Path(source)
    close = get_close_matches(name, CATALOGUE, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise UnknownModel(f"{name!r} is neither a file nor a model{hint} (models: {', '.join(CATALOGUE)})")


def crop_pct(variant: str, image_size: int) -> float:
    """The crop that goes with a variant at a size: the catalogue's where it has the pair, otherwise 0.96."""
    for model in CATALOGUE.values():
        if (model.variant, model.image_size) == (variant, image_size):
            return model.crop_pct
    return _DEFAULT_CROP_PCT


def rows() -> list[Row]:
    """The whole catalogue as a table, one row a model. Imports torch."""
    return [_row(model) for model in CATALOGUE.values()]


def _row(model: Model) -> Row:
    cost = model.cost
    return Row(
        name=model.name,
        image_size=model.image_size,
        crop_pct=model.crop_pct,
        classes=len(model.labels),
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        top1=model.top1,
        source=model.weights.name if isinstance(model.weights, Path) else model.weights.hub_repo,
    )
