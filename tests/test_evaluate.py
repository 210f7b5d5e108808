import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from example_pictures import jpeg, picture, write_folder, write_shard
from safetensors.torch import save_file

import models
from models.classifier import Classifier
from models.dataset import examples_for, iterate_examples, read_image
from models.evaluate import Report, evaluate, main, report
from models.volo import VARIANTS

NAMES = ["blue", "green", "red"]
CLASSES = [index % 3 for index in range(70)]  # more than a batch
PICTURES = [jpeg(picture(label, seed, size=48)) for seed, label in enumerate(CLASSES)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = replace(VARIANTS["volo_nano"], image_size=32, num_classes=3)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(models.create_model(config).state_dict(), path, {"labels": json.dumps(NAMES)})
    return path


@pytest.fixture(scope="module")
def classifier(saved: Path) -> Classifier:
    return models.load_model(saved)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "shard.npz", PICTURES, CLASSES)


def test_right_guesses_are_counted_among_the_first_and_the_first_five() -> None:
    scores = torch.tensor([6.0, 5, 4, 3, 2, 1]).softmax(0).expand(4, 6)
    found = report(scores, torch.tensor([0, 0, 4, 5]))
    assert (found.pictures, found.top1, found.top5) == (4, 0.5, 0.75)


def test_with_fewer_than_five_classes_every_guess_is_among_them() -> None:
    assert report(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([1, 0])).top5 == 1


def test_scores_that_are_right_as_often_as_they_say_are_calibrated() -> None:
    scores = torch.tensor([[0.75, 0.25]] * 4 + [[0.5, 0.5]] * 2)
    found = report(scores, torch.tensor([0, 0, 0, 1, 0, 1]))
    assert found.confidence == pytest.approx(4 / 6)
    assert found.calibration_error == pytest.approx(0)


def test_too_sure_and_too_timid_do_not_cancel_out() -> None:
    scores = torch.tensor([[1.0, 0.0]] * 2 + [[0.5, 0.5]] * 2)  # half right, and always right
    found = report(scores, torch.tensor([0, 1, 0, 0]))
    assert (found.top1, found.confidence) == (0.75, 0.75)
    assert found.calibration_error == pytest.approx(0.5)


def test_pictures_go_the_way_of_every_picture_that_is_served(classifier: Classifier, shard: Path) -> None:
    found = evaluate(classifier, list(iterate_examples([shard])))
    guesses = [classifier.classify(read_image(image), top_k=1)[0] for image in PICTURES]
    assert found.pictures == 70
    assert found.top1 == pytest.approx(
        np.mean([guess.index == label for guess, label in zip(guesses, CLASSES, strict=True)])
    )
    assert found.confidence == pytest.approx(np.mean([guess.score for guess in guesses]), abs=1e-5)


def test_a_folder_gives_what_a_shard_gives(classifier: Classifier, shard: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", PICTURES, CLASSES, NAMES)
    one, other = (evaluate(classifier, list(examples_for(classifier.labels, [source]))) for source in (folder, shard))
    assert (one.pictures, one.top1, one.top5) == (other.pictures, other.top1, other.top5)
    assert (one.confidence, one.calibration_error) == pytest.approx((other.confidence, other.calibration_error))


def test_classes_that_the_model_has_not_are_refused(classifier: Classifier, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "other.npz", PICTURES[:1], [3])
    with pytest.raises(ValueError, match="a picture is of class 3, and the model has 3"):
        evaluate(classifier, list(examples_for(classifier.labels, [shard])))


def test_no_pictures_are_refused(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="there are no pictures"):
        evaluate(classifier, [])


def test_the_command_prints_a_few_lines(saved: Path, shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(saved), str(shard), "--device", "cpu"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("70 pictures: top-1 ")
    assert "expected calibration error" in second


def test_the_command_prints_json_on_request(saved: Path, shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(saved), str(shard), "--device", "cpu", "--json"])
    assert Report(**json.loads(capsys.readouterr().out)).pictures == 70
