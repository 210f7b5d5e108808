"""Fast decoding changes scores by a hair, and not the labels of photos that a model is sure of."""

import pytest

import models
from models.classifier import Classifier
from service.bench.agreement import Agreement, compare, enlarged
from service.bench.pictures import read


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return models.load_model("embedded")


def found(classifier: Classifier, width: int, height: int) -> dict[str, Agreement]:
    return compare(classifier, (enlarged(data, width, height) for data in read(None)))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 501), (1921, 1080)])
def test_the_samples_get_the_same_labels_from_fast_decoding(classifier: Classifier, width: int, height: int) -> None:
    for each in found(classifier, width, height).values():
        assert each.same_top1 == each.pictures == 4
        assert each.largest_difference < 0.02


def test_a_fast_crop_of_a_photo_read_whole_changes_next_to_nothing(classifier: Classifier) -> None:
    assert found(classifier, 500, 375)["fast crop"].largest_difference < 0.002
