"""Whether the evidence points at the thing: how often the middle of the loudest patch lies in the object's box.

``python -m models.pointing embedded val.npz``: the pointing game of Zhang et al. (arXiv 1608.00507), on shards with
``boxes`` [n, 4], the object's left, top, right and bottom in pixels. To be worth something the evidence must beat
pointing at the picture's middle, where most photographers put the object.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import models
from models.classifier import Classifier
from models.dataset import iterate_examples, read_image
from models.evidence import box, loudest
from models.preprocess import region

BATCH_SIZE = 128

_Point = tuple[float, float]


@dataclass(frozen=True)
class Hits:
    """Shares of the pictures in whose object's box one points, 0 to 1, by what one points with."""

    anywhere: float
    """The boxes' mean share of the picture: what pointing blindly gives."""
    centre: float
    evidence_for_the_answer: float
    evidence_for_the_truth: float
    where_the_centre_misses: float
    """The evidence for the answer, on these pictures alone."""

    def __str__(self) -> str:
        return "\n".join(f"{name.replace('_', ' '):24} {share:7.2%}" for name, share in vars(self).items())


def play(classifier: Classifier, shard: Path) -> Hits:
    """Point with the evidence of every picture of a shard."""
    examples = list(iterate_examples([shard]))
    with np.load(shard) as arrays:
        boxes = arrays["boxes"].astype(float)
    answered, true = list[_Point](), list[_Point]()
    sizes = list[tuple[int, int]]()
    for start in tqdm(range(0, len(examples), BATCH_SIZE), "pointing", unit="batch"):
        images = [read_image(image) for image, _ in examples[start : start + BATCH_SIZE]]
        truth = torch.tensor([label for _, label in examples[start : start + BATCH_SIZE]])
        seen = classifier.see(torch.from_numpy(np.stack([classifier.crop(image) for image in images])))
        for classes, points in ((seen.logits.argmax(dim=1), answered), (truth.to(classifier.device), true)):
            points += _points(classifier, seen.tokens, classes, [image.size for image in images])
        sizes += [image.size for image in images]
    width_height = np.array(sizes, float)
    centre, answer = _hits(width_height / 2, boxes), _hits(np.array(answered) * width_height, boxes)
    covered = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / width_height.prod(axis=1)
    return Hits(
        anywhere=float(covered.mean()),
        centre=float(centre.mean()),
        evidence_for_the_answer=float(answer.mean()),
        evidence_for_the_truth=float(_hits(np.array(true) * width_height, boxes).mean()),
        where_the_centre_misses=float(answer[~centre].sum() / max(1, (~centre).sum())),
    )


@torch.inference_mode()
def _points(classifier: Classifier, tokens: Tensor, classes: Tensor, sizes: Sequence[tuple[int, int]]) -> list[_Point]:
    """The middle of the loudest patch for each picture's class, as fractions of its width and height."""
    points = []
    for patches, size in zip(classifier.model.evidence(tokens, classes[:, None]).float().cpu(), sizes, strict=True):
        seen = region(size, classifier.image_size, classifier.crop_pct)
        left, top, right, bottom = box(loudest(patches[0].numpy()), patches.shape[-1], seen)
        points.append(((left + right) / 2, (top + bottom) / 2))
    return points


def _hits(points: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each of the points [n, 2] lies in its box [n, 4]."""
    return np.asarray(((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(axis=1), np.bool_)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.pointing", description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name of the catalogue, as embedded, or the path of a checkpoint")
    parser.add_argument("shard", type=Path, help="an .npz of pictures with boxes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(arguments)
    print(play(models.load_model(chosen.model, device=chosen.device), chosen.shard))


if __name__ == "__main__":
    main()
