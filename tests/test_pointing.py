"""The pointing game: what counts as a hit, and against what."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from example_pictures import jpeg, picture

import models
from models.classifier import Classifier
from models.dataset import read_image
from models.labels import Label
from models.pointing import play
from models.volo import VARIANTS

COUNT, SIZE = 5, 32
PICTURES = [picture(seed % 3, seed, size=SIZE) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    model = models.create_model(replace(VARIANTS["volo_nano"], image_size=SIZE, num_classes=3))
    return Classifier(model, name="small", crop_pct=1.0, labels=[Label(str(index)) for index in range(3)])


def shard(folder: Path, boxes: list[tuple[float, float, float, float]]) -> Path:
    encoded = [np.frombuffer(jpeg(each), np.uint8) for each in PICTURES]
    path = folder / "shard.npz"
    offsets = np.cumsum([0, *map(len, encoded)])
    np.savez(path, bytes=np.concatenate(encoded), offsets=offsets, labels=[0] * COUNT, boxes=np.array(boxes))
    return path


def test_what_fills_the_picture_is_hit_by_everything(classifier: Classifier, tmp_path: Path) -> None:
    hits = play(classifier, shard(tmp_path, [(0, 0, SIZE, SIZE)] * COUNT))
    assert (hits.anywhere, hits.centre, hits.evidence_for_the_answer, hits.evidence_for_the_truth) == (1, 1, 1, 1)


def test_the_loudest_patch_is_what_is_pointed_with(classifier: Classifier, tmp_path: Path) -> None:
    crops = np.stack([classifier.crop(read_image(jpeg(each))) for each in PICTURES])
    _, maps = classifier.evidence(classifier.see(torch.from_numpy(crops)), 1)
    side = SIZE // maps.shape[-1]
    boxes = []
    for place in maps.flatten(1).argmax(dim=1).tolist():
        row, column = divmod(place, maps.shape[-1])
        boxes.append((column * side, row * side, (column + 1) * side, (row + 1) * side))
    hits = play(classifier, shard(tmp_path, boxes))
    assert hits.evidence_for_the_answer == 1
    assert hits.where_the_centre_misses == 1
    assert hits.anywhere == pytest.approx((side / SIZE) ** 2)
    assert hits.centre < 1
