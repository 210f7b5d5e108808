"""The package's two entry points."""

import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import models
from models import weights
from models.download import DownloadError
from models.labels import LabelsError
from models.volo import VARIANTS
from models.weights import WeightsError
from models.zoo import CATALOGUE, UnknownModel


def saved(folder: Path, num_classes: int, names: str | None = None) -> Path:
    path = folder / "mine.v2.safetensors"
    state = models.create_model("volo_nano", num_classes=num_classes).state_dict()
    save_file(state, path, {"labels": names} if names else None)
    return path


def test_a_model_is_created_by_its_variants_name() -> None:
    model = models.create_model("volo_nano", image_size=96, num_classes=5).eval()
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


def test_a_model_is_created_by_a_config() -> None:
    config = replace(VARIANTS["volo_nano"], layers=(1, 1, 1, 1), num_classes=3)
    assert models.create_model(config).config == config


def test_an_unknown_variant_is_an_error_that_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="no variant is called 'volo_d9'; there are volo_d1, volo_d2"):
        models.create_model("volo_d9")


def test_a_size_that_is_no_whole_number_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="image size 100 is not a multiple of 16"):
        models.create_model("volo_d1", image_size=100)


def test_a_checkpoint_with_its_own_class_names_needs_nothing_else(tmp_path: Path) -> None:
    classifier = models.load_model(saved(tmp_path, 2, '["cat", "dog"]'))
    assert [label.name for label in classifier.labels] == ["cat", "dog"]
    assert (classifier.name, classifier.image_size, classifier.crop_pct) == ("mine", 64, 1.0)


def test_the_embedded_model_is_what_the_catalogue_says_and_small() -> None:
    entry, classifier = CATALOGUE["embedded"], models.load_model("embedded")
    assert (classifier.image_size, classifier.crop_pct) == (entry.image_size, entry.crop_pct)
    assert classifier.labels == entry.labels
    assert isinstance(entry.weights, Path)
    assert entry.weights.stat().st_size <= 16e6
    _, unfolded = weights.load(entry.weights)
    assert entry.cost.parameters == sum(p.numel() for p in unfolded.parameters()) <= 8e6


def test_weights_of_another_variant_than_the_catalogues_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(CATALOGUE["embedded"], variant="volo_tiny")
    monkeypatch.setattr("models.zoo.CATALOGUE", {"embedded": wrong})
    with pytest.raises(WeightsError, match="it holds volo_nano, not volo_tiny"):
        models.load_model("embedded")


@pytest.mark.parametrize("crop_pct", [0.0, -1.0, 300.0])
def test_a_crop_that_leaves_nothing_is_refused(crop_pct: float) -> None:
    with pytest.raises(ValueError, match="leaves nothing of 64 pixels"):
        models.load_model("embedded", crop_pct=crop_pct)


def test_its_modules_need_no_import_of_their_own() -> None:
    command = "import models; print(models.preprocess.crop.__name__, models.outlook.OutlookAttention.__name__)"
    said = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["crop", "OutlookAttention"]
    with pytest.raises(AttributeError, match="models has no 'nonsense'"):
        _ = models.nonsense


def test_a_thousand_classes_are_imagenets(tmp_path: Path) -> None:
    assert models.load_model(saved(tmp_path, 1000)).labels[0].name == "tench"


def test_classes_are_never_given_names_by_guess(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="has 200 classes and no names for them"):
        models.load_model(saved(tmp_path, 200))


def test_your_own_names_come_before_all_others(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("yes\nno\n")
    classifier = models.load_model(saved(tmp_path, 2, '["cat", "dog"]'), labels=tmp_path / "names.txt")
    assert [label.name for label in classifier.labels] == ["yes", "no"]


def test_a_wrong_number_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="has 2 labels, the model has 3 classes"):
        models.load_model(saved(tmp_path, 3, '["cat", "dog"]'))


def test_image_size_and_crop_can_be_chosen(tmp_path: Path) -> None:
    classifier = models.load_model(saved(tmp_path, 2, '["cat", "dog"]'), image_size=96, crop_pct=0.9)
    assert (classifier.image_size, classifier.crop_pct) == (96, 0.9)


def test_a_pinned_file_is_loaded_only_if_it_is_that_one(tmp_path: Path) -> None:
    path = saved(tmp_path, 2, '["cat", "dog"]')
    models.load_model(path, sha256=sha256(path.read_bytes()).hexdigest())
    with pytest.raises(DownloadError, match="not the pinned"):
        models.load_model(path, sha256="0" * 64)


def test_what_is_neither_model_nor_file_is_refused() -> None:
    with pytest.raises(UnknownModel, match=r"'no/such\.pth' is neither a file nor a model"):
        models.load_model("no/such.pth")
