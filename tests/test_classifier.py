from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_weights import fill
from PIL import Image

from models.classifier import Classifier, normalise
from models.labels import Label
from models.preprocess import crop
from models.volo import VARIANTS, Volo

LABELS = [Label(f"class {index}") for index in range(7)]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    model = Volo(replace(VARIANTS["volo_nano"], image_size=32, num_classes=7))
    fill(model)
    return Classifier(model, name="small", crop_pct=0.8, labels=LABELS, precision="float32")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))


def test_imagenets_mean_becomes_nought_and_one_deviation_more_becomes_one() -> None:
    mean, std = (np.array(values) * 255 for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = torch.from_numpy(np.stack([mean, mean + std, mean - 2 * std])).view(3, 3, 1, 1)
    wanted = torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(normalise(pixels), wanted, atol=1e-6, rtol=0)


def test_bytes_are_normalised_as_the_reference_transform_does() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert normalise(pixels).dtype == torch.float32
    torch.testing.assert_close(normalise(pixels), wanted, atol=2e-6, rtol=2e-6)


def test_scores_are_the_softmax_of_what_the_model_says(classifier: Classifier, picture: Image.Image) -> None:
    crops = torch.from_numpy(np.stack([classifier.crop(picture), classifier.crop(picture.rotate(180))]))
    with torch.inference_mode():
        logits = classifier.model(normalise(crops.permute(0, 3, 1, 2)))
    scores = classifier.scores(crops)
    torch.testing.assert_close(scores, logits.exp() / logits.exp().sum(dim=1, keepdim=True), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(2))
    assert scores.dtype == torch.float32


def test_the_model_is_ready_to_be_asked_and_not_to_be_trained(classifier: Classifier) -> None:
    assert not classifier.model.training
    assert not any(parameter.requires_grad for parameter in classifier.model.parameters())


def test_a_picture_is_cropped_as_the_model_wants_it(classifier: Classifier, picture: Image.Image) -> None:
    assert np.array_equal(classifier.crop(picture), crop(picture, 32, 0.8))


def test_a_picture_is_named_by_its_likeliest_classes(classifier: Classifier, picture: Image.Image) -> None:
    scores = classifier.scores(torch.from_numpy(classifier.crop(picture))[None])[0]
    order = scores.argsort(descending=True).tolist()
    found = classifier.classify(picture, top_k=3)
    assert [one.index for one in found] == order[:3]
    assert [one.label for one in found] == [f"class {index}" for index in order[:3]]
    assert [one.score for one in found] == pytest.approx([float(scores[index]) for index in order[:3]])


def test_unlikely_classes_are_left_out(classifier: Classifier, picture: Image.Image) -> None:
    every = classifier.classify(picture, top_k=100)
    assert len(every) == 7
    assert classifier.classify(picture, top_k=100, threshold=every[2].score) == every[:3]


def test_one_crop_alone_scores_as_in_a_batch_of_eight(classifier: Classifier) -> None:
    crops = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8))
    alone = torch.cat([classifier.scores(one[None]) for one in crops])
    torch.testing.assert_close(classifier.scores(crops), alone, atol=1e-5, rtol=1e-5)


def test_a_picture_that_is_not_rgb_is_refused(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="takes an RGB image, not L"):
        classifier.classify(Image.new("L", (40, 40)))
