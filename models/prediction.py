"""From scores to what a person reads: the likeliest classes by name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.labels import Label


@dataclass(frozen=True)
class Prediction:
    """One class that a picture may be of; ``score`` is its probability."""

    label: str
    index: int
    wnid: str | None
    score: float


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits, along the last axis."""
    powers: NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def top(scores: NDArray[np.float32], labels: Sequence[Label], k: int, threshold: float = 0.0) -> list[Prediction]:
    """The ``k`` likeliest classes with at least ``threshold`` probability, likeliest first; scores [classes].

    Of equally likely classes the first comes first, and the last is left out.
    """
    count = min(k, len(scores))
    if count < 1:
        return []
    least = np.partition(scores, -count)[-count]  # so that not all of a thousand classes need be sorted
    candidates = np.flatnonzero(scores >= max(least, threshold))
    likeliest = candidates[np.argsort(-scores[candidates], kind="stable")][:count].tolist()
    return [Prediction(labels[index].name, index, labels[index].wnid, float(scores[index])) for index in likeliest]
