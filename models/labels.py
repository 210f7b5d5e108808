"""What a model's classes are called: label lists, ours and yours, in the order of the classes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
IMAGENET_1K = DATA / "imagenet1k_labels.json"
TINY_IMAGENET = DATA / "tiny_imagenet_labels.json"


class LabelsError(ValueError):
    """A label list that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Label:
    """A class: the name people read (ImageNet has two cranes), and its WordNet id where it has one."""

    name: str
    wnid: str | None = None


def load_labels(path: str | Path, count: int | None = None) -> tuple[Label, ...]:
    """The labels in a file, in the order of the classes.

    A ``.json`` file holds a list of names or of ``{"name": ..., "wnid": ...}``; any other file is UTF-8 text
    with one name a line.

    Raises:
        LabelsError: the file holds no such list, or another number of labels than ``count``.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix == ".json" else text.strip().splitlines()
        labels = parse_labels(rows)
    except ValueError as error:  # bad UTF-8, bad JSON, bad rows
        raise LabelsError(f"{path}: {error}") from error
    return labels if count is None else check_count(labels, count, path)


def check_count(labels: tuple[Label, ...], count: int, path: Path) -> tuple[Label, ...]:
    """``labels`` themselves, which came from ``path``, if they are as many as the model has classes.

    Raises:
        LabelsError: they are not.
    """
    if len(labels) != count:
        raise LabelsError(f"{path} has {len(labels)} labels, the model has {count} classes")
    return labels


def parse_labels(rows: object) -> tuple[Label, ...]:
    """Labels of a list of names or of ``{"name": ..., "wnid": ...}``.

    Raises:
        LabelsError: ``rows`` is something else, or one of them is.
    """
    if not isinstance(rows, list):
        raise LabelsError("expected a list of labels")
    return tuple(_label(index, row) for index, row in enumerate(rows))


def _label(index: int, row: Any) -> Label:
    name, wnid = (row.get("name"), row.get("wnid")) if isinstance(row, dict) else (row, None)
    if not isinstance(name, str) or not name.strip():
        raise LabelsError(f"class {index} has no name: {row!r}")
    if not isinstance(wnid, str | None):
        raise LabelsError(f"class {index} has a wnid that is no text: {row!r}")
    return Label(name.strip(), wnid)
