"""The recipe, on a model so small that it really learns here, in seconds."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from example_pictures import jpeg, picture, write_folder, write_shard
from safetensors import safe_open
from torch import Tensor

import models
from models.augment import Mixed
from models.dataset import Dataset, load_dataset
from models.evaluate import evaluate
from models.labels import Label, LabelsError
from models.recipe import Recipe
from models.train import (
    Trainer,
    calibrated,
    class_labels,
    count_classes,
    export,
    mixed_loss,
    temperature,
    train,
)
from models.volo import VARIANTS, Heads, VoloConfig
from models.weights import load_state_dict, resize_position

CPU = torch.device("cpu")
TOY = VoloConfig(
    layers=(1, 1, 1, 1), dims=(16, 32, 32, 32), heads=(1, 2, 2, 2), stem_width=8, patch_size=4, image_size=32
)
RECIPE = Recipe(variant="volo_toy", stages=((16, 1), (32, 2)), batch_size=8, ema_decay=0.9)
CLASSES = [index % 2 for index in range(24)]
PICTURES = [jpeg(picture(label, seed)) for seed, label in enumerate(CLASSES)]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants are data, and training as well as loading look theirs up: the toy is one of them here."""
    monkeypatch.setitem(VARIANTS, "volo_toy", TOY)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "shard.npz", PICTURES, CLASSES)


@pytest.fixture
def dataset(shard: Path) -> Dataset:
    return load_dataset([shard], 32)


def run(trainer: Trainer, dataset: Dataset, until: int) -> list[float]:
    """Goes on by the recipe until so many epochs are done; the loss of each."""
    losses = []
    while trainer.epoch < until:
        trainer.grow(size := trainer.recipe.size(trainer.epoch))
        losses.append(trainer.train_epoch(dataset.at_size(size)))
    return losses


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_to_tell_its_own_pictures_apart(tmp_path: Path, shard: Path, dataset: Dataset) -> None:
    recipe = replace(RECIPE, stages=((32, 30),), augment=0.0, learning_rate=4e-3)
    trainer = Trainer(recipe, 2, CPU)
    losses = run(trainer, dataset, until=30)
    assert losses[-1] < 0.6 * losses[0]
    logits = trainer.logits(dataset)
    assert torch.equal(logits.argmax(1), dataset.labels)

    export(trainer, temperature(logits, dataset.labels), [Label("red"), Label("blue")], tmp_path / "m.safetensors")
    classifier = models.load_model(tmp_path / "m.safetensors", crop_pct=1.0)
    found = evaluate(classifier, list(zip(PICTURES, CLASSES, strict=True)))
    assert found.top1 == 1
    assert found.confidence > 0.95


@pytest.mark.parametrize("stopped", [1, 2])  # before and after growing
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, dataset: Dataset, stopped: int) -> None:
    through, first, second = (Trainer(RECIPE, 2, CPU) for _ in range(3))
    run(through, dataset, until=3)
    run(first, dataset, until=stopped)
    torch.save(first.checkpoint(), tmp_path / "checkpoint.pt")
    second.resume(tmp_path / "checkpoint.pt")
    run(second, dataset, until=3)
    assert same(through.model.state_dict(), second.model.state_dict())
    assert same(through.ema.state_dict(), second.ema.state_dict())


def test_another_seed_gives_other_weights(dataset: Dataset) -> None:
    one, other = (Trainer(replace(RECIPE, seed=seed), 2, CPU) for seed in (0, 1))
    assert not same(one.model.state_dict(), other.model.state_dict())
    assert run(one, dataset, until=1) != run(other, dataset, until=1)


def test_every_epoch_is_drawn_anew(dataset: Dataset) -> None:
    first, second = run(Trainer(replace(RECIPE, stages=((16, 2),), learning_rate=0.0), 2, CPU), dataset, until=2)
    assert first != second


def test_growing_resizes_the_position_embedding_of_model_and_average(dataset: Dataset) -> None:
    trainer = Trainer(RECIPE, 2, CPU)
    run(trainer, dataset, until=1)
    model, average = ({**state.state_dict()} for state in (trainer.model, trainer.ema))
    trainer.grow(32)
    assert trainer.model.config.image_size == 32
    wanted = {**model, "pos_embed": resize_position(model["pos_embed"], 4)}
    assert same(dict(trainer.model.state_dict()), wanted)
    wanted = {**average, "module.pos_embed": resize_position(average["module.pos_embed"], 4)}
    assert same(dict(trainer.ema.state_dict()), wanted)


def test_the_size_of_an_epoch_is_its_stages() -> None:
    recipe = Recipe(stages=((32, 2), (48, 1), (64, 2)))
    assert [recipe.size(epoch) for epoch in range(recipe.epochs)] == [32, 32, 48, 64, 64]


def test_the_learning_rate_rises_evenly_and_falls_to_a_hundredth() -> None:
    recipe = Recipe(learning_rate=1.0, warmup=0.25)
    rates = [recipe.learning_rate_at(progress / 100) for progress in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.2)
    assert rates.index(max(rates)) == 25
    assert rates[25] == pytest.approx(1)
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[100] == pytest.approx(0.01)


def test_fewer_pictures_than_a_batch_are_one_batch(dataset: Dataset) -> None:
    trainer = Trainer(replace(RECIPE, batch_size=100), 2, CPU)
    assert run(trainer, dataset, until=1)[0] > 0


def test_each_patch_learns_its_own_label_and_the_class_token_the_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = Heads(cls=torch.randn(2, 3, generator=generator), aux=torch.randn(2, 4, 3, generator=generator))
    labels, partner = torch.tensor([0, 2]), torch.tensor([1, 0])
    share = torch.tensor([[[0.0, 1], [0.25, 0]], [[0, 0], [0, 0]]])
    patches = 0.0
    for picture_index in range(2):
        for patch, other in enumerate(share[picture_index].flatten().tolist()):
            scores = heads.aux[picture_index, patch].log_softmax(0)
            own, partners = scores[labels[picture_index]], scores[labels[1 - picture_index]]
            patches -= float((1 - other) * own + other * partners) / 8
    scores = heads.cls.log_softmax(1)
    of_first = (1 - 0.3125) * scores[0, 0] + 0.3125 * scores[0, 2]
    wanted = -float(of_first + scores[1, 2]) / 2 + 0.5 * patches
    mixed = Mixed(torch.empty(2, 3, 8, 8), partner, share)
    assert float(mixed_loss(heads, mixed, labels, smoothing=0.0)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_temperature_recovers_by_how_much_logits_are_too_sure(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(20_000, 5, generator=generator) * 2
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]  # right as often as they say
    assert temperature(honest * factor, labels) == pytest.approx(factor, rel=0.05)


def test_calibration_divides_what_the_model_says(dataset: Dataset) -> None:
    model = models.create_model("volo_toy", num_classes=2).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model(x)
    scaled = calibrated(model.state_dict(), 2.0)
    assert {value.dtype for value in scaled.values()} == {torch.float16, torch.int64}
    load_state_dict(model, scaled)
    torch.testing.assert_close(model(x), before / 2, atol=1e-3, rtol=1e-2)


def folder_run(folder: Path, out: Path) -> dict[str, Tensor]:
    train(RECIPE, [folder], out, CPU)
    with safe_open(out / "weights.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def test_a_folder_is_trained_on_from_pictures_to_a_model_with_its_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "folder", PICTURES, CLASSES, ["blue", "red"])
    weights = folder_run(folder, tmp_path / "out")
    assert capsys.readouterr().out.count("held-out top-1") == 3
    classifier = models.load_model(tmp_path / "out" / "weights.safetensors")
    assert [label.name for label in classifier.labels] == ["blue", "red"]
    assert (classifier.image_size, classifier.model.config.num_classes) == (32, 2)
    assert (tmp_path / "out" / "weights.safetensors").stat().st_mode & 0o777 == 0o644

    assert same(folder_run(folder, tmp_path / "out"), weights)  # it was done
    assert capsys.readouterr().out == ""


def names(path: Path, rows: Sequence[str | dict[str, str]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_a_shards_classes_are_called_what_the_file_says(tmp_path: Path, shard: Path) -> None:
    file = names(tmp_path / "labels.json", [{"name": "cat", "wnid": "n02121808"}, "dog", "cow"])
    train(replace(RECIPE, stages=((16, 1),)), [shard], tmp_path / "out", CPU, file)
    classifier = models.load_model(tmp_path / "out" / "weights.safetensors")
    assert classifier.labels == (Label("cat", "n02121808"), Label("dog"), Label("cow"))


def test_without_names_a_shards_classes_are_as_many_as_have_pictures(shard: Path, dataset: Dataset) -> None:
    assert class_labels([shard], None) is None
    assert count_classes(dataset, None) == 2


def test_fewer_names_than_classes_are_refused(dataset: Dataset) -> None:
    with pytest.raises(LabelsError, match="of 2 classes, and only 1 have names"):
        count_classes(dataset, [Label("cat")])


def test_stages_that_cannot_be_are_refused_before_anything_is_done(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(ValueError, match="image size 50 is not a multiple of 8"):
        train(replace(RECIPE, stages=((16, 1), (50, 1))), [shard], tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_folders_and_a_file_of_names_go_together_by_name_not_by_place(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", PICTURES, CLASSES, ["cat", "dog"])
    by_place = load_dataset([folder], 16)
    by_name = load_dataset([folder], 16, [Label("dog"), Label("cat")])
    assert by_name.labels.tolist() == [1 - label for label in by_place.labels.tolist()]


def test_a_file_of_names_comes_before_the_folders(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", PICTURES, CLASSES, ["n01", "n02"])
    assert class_labels([folder], None) == (Label("n01"), Label("n02"))
    assert class_labels([folder], names(tmp_path / "labels.json", ["cat", "dog"])) == (Label("cat"), Label("dog"))
