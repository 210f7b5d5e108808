from pathlib import Path

import numpy as np
import pytest
import torch
from example_pictures import jpeg, picture, write_folder, write_shard
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from models.dataset import Dataset, class_names, examples_for, load_dataset, read_image
from models.labels import Label

CLASSES = [0, 0, 1, 2, 2, 2]
PICTURES = [jpeg(picture(label, seed)) for seed, label in enumerate(CLASSES)]


def numbered(count: int) -> Dataset:
    """Pictures that carry their number, as does their class."""
    numbers = torch.arange(count)
    return Dataset(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), numbers)


def same(one: Dataset, other: Dataset) -> bool:
    return torch.equal(one.pictures, other.pictures) and torch.equal(one.labels, other.labels)


def test_a_shard_and_a_folder_by_class_give_the_same_examples(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "shard.npz", PICTURES, CLASSES)
    folder = write_folder(tmp_path / "folder", PICTURES, CLASSES, ["cat", "cow", "dog"])
    dataset = load_dataset([shard], 32)
    assert same(dataset, load_dataset([folder], 32))
    assert dataset.labels.tolist() == CLASSES
    assert (dataset.pictures.dtype, dataset.pictures.shape) == (torch.uint8, (6, 3, 32, 32))


def test_pictures_of_their_own_size_are_left_as_they_are(tmp_path: Path) -> None:
    dataset = load_dataset([write_shard(tmp_path / "shard.npz", PICTURES, CLASSES)], 32)
    assert np.array_equal(dataset.pictures[4].permute(1, 2, 0).numpy(), np.asarray(read_image(PICTURES[4])))


def test_sources_follow_one_another(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "first.npz", PICTURES[:2], CLASSES[:2])
    second = write_shard(tmp_path / "second.npz", PICTURES[2:], CLASSES[2:])
    assert same(
        load_dataset([first, second], 32), load_dataset([write_shard(tmp_path / "a.npz", PICTURES, CLASSES)], 32)
    )


def test_what_is_no_picture_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", PICTURES, CLASSES, ["cat", "cow", "dog"])
    (folder / "cat" / "notes.txt").write_text("mine")
    (folder / ".cache").mkdir()
    (folder / "README").write_text("mine")
    assert load_dataset([folder], 32).labels.tolist() == CLASSES
    assert class_names([folder]) == ["cat", "cow", "dog"]


def test_no_pictures_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="no pictures in "):
        load_dataset([tmp_path], 32)


def test_folders_name_the_classes_and_have_to_agree(tmp_path: Path) -> None:
    one, two = (write_folder(tmp_path / name, [], [], ["cat", "dog"]) for name in ("one", "two"))
    other = write_folder(tmp_path / "other", [], [], ["cat", "fox"])
    shard = write_shard(tmp_path / "shard.npz", PICTURES, CLASSES)
    assert class_names([shard]) is None
    assert class_names([one, shard, two]) == ["cat", "dog"]
    with pytest.raises(ValueError, match="different classes"):
        class_names([one, other])


def test_a_folders_classes_are_found_among_a_models_by_name_or_wordnet_id(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", PICTURES, CLASSES, ["cow", "dog", "n02121808"])
    labels = [Label("dog"), Label("hen"), Label("cat", "n02121808"), Label("cow")]
    assert [label for _, label in examples_for(labels, [folder])] == [3, 3, 0, 2, 2, 2]
    with pytest.raises(ValueError, match="has classes that the model has not: cow, n02121808"):
        list(examples_for(labels[:2], [folder]))


def test_a_shards_classes_are_the_models(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "shard.npz", PICTURES, CLASSES)
    assert [label for _, label in examples_for([Label("cat"), Label("cow"), Label("dog")], [shard])] == CLASSES


def test_pictures_are_read_upright_and_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was held on its side
    Image.new("RGB", (20, 10), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "turned.jpg").size == (10, 20)
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)


def test_another_size_keeps_the_colours_and_the_classes() -> None:
    dataset = Dataset(
        torch.tensor([10, 200, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 8, 8), torch.ones(2)
    )
    for size in (4, 6, 12):
        resized = dataset.at_size(size)
        assert torch.equal(resized.pictures, dataset.pictures[:, :, :1, :1].expand(2, 3, size, size))
        assert resized.labels is dataset.labels
    assert dataset.at_size(8) is dataset


def test_a_smaller_size_is_antialiased() -> None:
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(8).expand(1, 3, 16, 16)
    smaller = Dataset(stripes, torch.zeros(1)).at_size(4).pictures.int()
    assert (smaller - 128).abs().max() <= 16


@given(st.integers(1, 60), st.data(), st.integers(0, 5))
def test_a_split_parts_all_pictures_with_their_classes(count: int, data: st.DataObject, seed: int) -> None:
    held_out = data.draw(st.integers(0, count))
    rest, held = numbered(count).split(held_out, seed)
    assert len(held) == held_out
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(count))
    for part in (rest, held):
        assert torch.equal(part.pictures[:, 0, 0, 0].long(), part.labels)


def test_a_split_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    once, again, other = (numbered(100).split(20, seed) for seed in (1, 1, 2))
    assert same(once[0], again[0])
    assert same(once[1], again[1])
    assert not same(once[1], other[1])
