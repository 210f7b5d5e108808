import numpy as np
import pytest

from models.labels import Label
from models.prediction import Prediction, top

LABELS = (Label("cat", "n02121808"), Label("dog"), Label("cow"), Label("hen"))


def indices(scores: list[float], k: int, threshold: float = 0.0) -> list[int]:
    return [found.index for found in top(np.array(scores, np.float32), LABELS, k, threshold)]


def test_the_likeliest_come_first_with_their_names() -> None:
    assert top(np.array([0.25, 0.5, 0.125, 0.125], np.float32), LABELS, 2) == [
        Prediction("dog", 1, None, 0.5),
        Prediction("cat", 0, "n02121808", 0.25),
    ]


@pytest.mark.parametrize(("k", "count"), [(0, 0), (1, 1), (4, 4), (5, 4), (1000, 4)])
def test_there_are_as_many_as_asked_for_and_at_most_all(k: int, count: int) -> None:
    assert len(indices([0.1, 0.4, 0.3, 0.2], k)) == count


@pytest.mark.parametrize("k", range(5))
def test_equally_likely_classes_come_in_the_order_of_the_labels(k: int) -> None:
    assert indices([0.25, 0.25, 0.25, 0.25], k) == [0, 1, 2, 3][:k]
    assert indices([0.1, 0.4, 0.1, 0.4], k) == [1, 3, 0, 2][:k]


def test_what_is_as_likely_as_the_threshold_is_kept_and_what_is_less_likely_is_not() -> None:
    assert indices([0.125, 0.5, 0.25, 0.125], 4, threshold=0.25) == [1, 2]
    assert indices([0.125, 0.5, 0.25, 0.125], 1, threshold=0.25) == [1]
    assert indices([0.125, 0.5, 0.25, 0.125], 4, threshold=0.75) == []


def test_scores_are_plain_numbers() -> None:
    first = top(np.array([1, 0, 0, 0], np.float32), LABELS, 1)[0]
    assert (type(first.index), type(first.score)) == (int, float)
