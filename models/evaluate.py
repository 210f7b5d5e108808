"""How good a saved model is, on pictures whose classes are known.

    python -m models.evaluate embedded SHARDS_OR_FOLDERS...

They go the way of every picture that is served, through the model's own crop and classifier.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import models
from models.classifier import Classifier
from models.dataset import Example, examples_for, read_image

BATCH_SIZE = 64
BINS = 15


@dataclasses.dataclass(frozen=True)
class Report:
    """Shares of all pictures, from 0 to 1.

    ``confidence`` is the mean score of the likeliest class, to be compared with ``top1``; ``calibration_error`` how far
    the two are from each other in 15 bins by confidence, on average (expected calibration error, arXiv 1706.04599).
    """

    pictures: int
    top1: float
    top5: float
    confidence: float
    calibration_error: float

    def __str__(self) -> str:
        return (
            f"{self.pictures} pictures: top-1 {self.top1:.2%}, top-5 {self.top5:.2%}\n"
            f"mean confidence {self.confidence:.2%}, expected calibration error {self.calibration_error:.2%}"
        )


def report(scores: Tensor, labels: Tensor) -> Report:
    """What probabilities [N, classes] are worth where the truth is ``labels`` [N]."""
    likeliest = scores.topk(min(5, scores.shape[1])).indices
    hits = (likeliest == labels[:, None]).double()  # N, 5
    confidence = scores.amax(dim=1).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.double).index_add(0, bins, hits[:, 0] - confidence)
    return Report(
        pictures=len(labels),
        top1=float(hits[:, 0].mean()),
        top5=float(hits.sum(dim=1).mean()),
        confidence=float(confidence.mean()),
        calibration_error=float(gaps.abs().sum()) / len(labels),
    )


def evaluate(classifier: Classifier, examples: Sequence[Example]) -> Report:
    """What a classifier makes of encoded pictures, each with its class.

    Raises:
        ValueError: there is no picture, or one of a class that the model has not.
    """
    if not examples:
        raise ValueError("there are no pictures")
    truth = torch.tensor([label for _, label in examples])
    if (count := len(classifier.labels)) <= int(truth.max()):
        raise ValueError(f"a picture is of class {int(truth.max())}, and the model has {count}, from 0")
    starts = tqdm(range(0, len(examples), BATCH_SIZE), "evaluating", unit="batch")
    return report(torch.cat([_scores(classifier, examples[start : start + BATCH_SIZE]) for start in starts]), truth)


def _scores(classifier: Classifier, batch: Sequence[Example]) -> Tensor:
    crops = np.stack([classifier.crop(read_image(image)) for image, _ in batch])
    return classifier.scores(torch.from_numpy(crops)).cpu()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name of the catalogue, as embedded, or the path of a checkpoint")
    parser.add_argument("sources", nargs="+", type=Path, help="shards (.npz) or folders with one folder a class")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    classifier = models.load_model(chosen.model, device=chosen.device)
    result = evaluate(classifier, list(examples_for(classifier.labels, chosen.sources)))
    print(json.dumps(dataclasses.asdict(result)) if chosen.json else result)


if __name__ == "__main__":
    main()
