import json
from pathlib import Path

import pytest

from models.labels import IMAGENET_1K, TINY_IMAGENET, Label, LabelsError, load_labels


def test_imagenet_has_its_thousand_classes_each_by_its_first_name() -> None:
    labels = load_labels(IMAGENET_1K, 1000)
    assert labels[0] == Label("tench", "n01440764")
    assert labels[281] == Label("tabby", "n02123045")
    assert labels[999] == Label("toilet tissue", "n15075141")
    assert len({label.wnid for label in labels}) == 1000


def test_tiny_imagenet_has_two_hundred_of_the_same_classes() -> None:
    labels = load_labels(TINY_IMAGENET, 200)
    assert labels[0] == Label("goldfish", "n01443537")
    assert len({label.wnid for label in labels}) == 200


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog, big\n"),
        ("labels.txt", "\ufeffcat\r\n  dog, big  \r\n\r\n"),
        ("labels.json", '["cat", "dog, big"]'),
        ("labels.json", '[{"name": "cat"}, {"name": "dog, big", "wnid": null}]'),
    ],
)
def test_your_own_list_is_text_or_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_labels(tmp_path / name) == (Label("cat"), Label("dog, big"))


def test_a_wrong_number_of_labels_is_an_error_that_says_both(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("cat\ndog")
    with pytest.raises(LabelsError, match=r"two\.txt has 2 labels, the model has 3 classes"):
        load_labels(tmp_path / "two.txt", 3)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("labels.txt", b"cat\n\ndog", "class 1 has no name"),
        ("labels.txt", b"\xff\xfe\x00", "utf-8"),
        ("labels.json", b"{", "Expecting"),
        ("labels.json", b'{"0": "cat"}', "expected a list"),
        ("labels.json", b'["cat", 7]', "class 1 has no name: 7"),
        ("labels.json", b'[{"wnid": "n01440764"}]', "class 0 has no name"),
        (
            "labels.json",
            json.dumps([{"name": "cat", "wnid": 1}]).encode(),
            "class 0 has a wnid that is no text",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error_that_names_file_and_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelsError, match=f"{name}.*{reason}"):
        load_labels(tmp_path / name)
