"""Tables of results: what goes in comes out, and a crash costs no more than the last line."""

import csv
import os
from contextlib import suppress
from pathlib import Path

import pytest

from service.predict.results import FORMATS, Record, Results, ResultsError

ESPRESSO = {"label": "espresso", "index": 193, "wnid": "n07920052", "score": 0.5}
CRANE = {"label": "crane, the bird", "index": 2, "wnid": None, "score": 0.25}
RECORDS: list[Record] = [
    {"file": "a.jpg", "model": "m", "predictions": [ESPRESSO, CRANE]},
    {"file": "b c.jpg", "model": "m", "predictions": [CRANE]},
    {"file": "d.jpg", "model": "m", "predictions": []},
    {"file": "é.jpg", "model": "m", "error": "not_an_image", "detail": "The data is not a picture."},
]
formats = pytest.mark.parametrize("suffix", FORMATS)


def written(path: Path) -> list[Record]:
    return list(FORMATS[path.suffix].read(path))


@formats
def test_what_goes_in_comes_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    with Results(path, "m") as results:
        for record in RECORDS:
            results.add(record)
    assert written(path) == RECORDS
    assert os.listdir(tmp_path) == [path.name]


@formats
def test_opened_again_it_knows_what_is_done_and_adds_to_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    for start in (0, 2):
        with Results(path, "m") as results:
            assert results.done == {record["file"] for record in RECORDS[:start]}
            for record in RECORDS[start : start + 2]:
                results.add(record)
    assert written(path) == RECORDS
    assert os.listdir(tmp_path) == [path.name]


@formats
def test_two_do_not_write_one_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    with Results(path, "m") as results:
        results.add(RECORDS[0])
        with pytest.raises(ResultsError, match="another command is writing"), Results(path, "m"):
            pass
        results.add(RECORDS[1])
    assert written(path) == RECORDS[:2]


@formats
def test_interrupted_it_keeps_what_there_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    with suppress(KeyboardInterrupt), Results(path, "m") as results:
        results.add(RECORDS[0])
        raise KeyboardInterrupt
    assert not path.exists() or suffix == ".jsonl"
    with Results(path, "m") as results:
        assert results.done == {"a.jpg"}
        results.add(RECORDS[1])
    assert written(path) == RECORDS[:2]


@pytest.mark.parametrize("torn", [b'{"fi', b'{"file": "\xc3', b'{"file": "b.jpg", "model": "m", "predictions": []}'])
def test_a_line_that_a_crash_has_torn_is_done_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "results.jsonl"
    with Results(path, "m") as results:
        results.add(RECORDS[0])
    with path.open("ab") as stream:
        stream.write(torn)
    with Results(path, "m") as results:
        assert results.done == {"a.jpg"}
        results.add(RECORDS[1])
    assert written(path) == RECORDS[:2]


@formats
def test_results_of_another_model_are_not_added_to(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    with Results(path, "m") as results:
        results.add(RECORDS[0])
    with (
        pytest.raises(ResultsError, match="results of the model 'm', and these are of 'other'"),
        Results(path, "other"),
    ):
        pass
    assert written(path) == RECORDS[:1]
    assert os.listdir(tmp_path) == [path.name]


def test_a_table_has_a_row_for_each_picture_and_columns_for_each_rank(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with Results(path, "m") as results:
        for record in RECORDS:
            results.add(record)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [record["file"] for record in RECORDS]
    assert (rows[0]["label_1"], rows[0]["score_1"], rows[0]["label_2"]) == ("espresso", "0.5", "crane, the bird")
    assert (rows[1]["label_1"], rows[1]["label_2"]) == ("crane, the bird", "")
    assert (rows[3]["error"], rows[3]["label_1"]) == ("not_an_image", "")


def test_where_no_results_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"none of \*\.jsonl, \*\.csv, \*\.parquet"):
        Results(tmp_path / "results.txt", "m")
    with pytest.raises(ResultsError, match="there is no folder"):
        Results(tmp_path / "missing" / "results.csv", "m")


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("notes.jsonl", b"my notes\n", 1),
        ("list.jsonl", b"[1]\n", 1),
        ("latin.jsonl", b"caf\xe9\n", 1),
        ("other.jsonl", b'{"a": 1}\n{"b": 2}', 1),
        ("later.jsonl", b'{"file": "a.jpg", "model": "m", "predictions": []}\nmy notes\nmore', 2),
        ("line.jsonl", b'{"b": 2}', 1),
        ("table.csv", b"a,b\n1,2\n", 1),
        ("short.csv", b"file,model,error,detail,label_1,score_1,index_1,wnid_1\na.jpg,m,,,x,0.5,one\n", 1),
        ("text.parquet", b"my notes", 1),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, name: str, content: bytes, row: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=f"something else than results in row {row}"), Results(path, "m"):
        pass
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [name]


@formats
def test_a_whole_table_to_which_nothing_comes_is_not_written_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    with Results(path, "m") as results:
        for record in RECORDS:
            results.add(record)
    before = path.stat()
    with Results(path, "m") as results:
        assert results.failed == 1
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(tmp_path) == [path.name]


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.predict.results.find_spec", lambda name: None)
    with pytest.raises(ResultsError, match=r"volo-serve\[parquet\]"):
        Results(tmp_path / "results.parquet", "m")
