"""`volo bench`, as people type it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from service.__main__ import main
from service.settings import Settings


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Bench = Callable[..., Ended]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    """Runs a bench in this process, where torch is loaded already."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VOLO_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*command: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["volo", "bench", *command])
        with pytest.raises(SystemExit) as exit_:
            main()
        return Ended(int(exit_.value.code or 0), *capsys.readouterr())

    return run


def test_it_tells_what_can_be_measured(bench: Bench) -> None:
    ended = bench()
    assert ended.returncode == 0
    assert all(what in ended.stdout for what in ("model", "preprocess", "serve", "overhead"))


def test_a_model_is_timed_by_batch_size(bench: Bench) -> None:
    ended = bench("model", "--batch", "2,1", "--seconds", "0.1", "--json", "figures.json", "--plot", "figures.svg")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("embedded on cpu, 1 thread")
    assert "of matrix rate" in ended.stdout
    figures = json.loads(Path("figures.json").read_text())
    assert figures["command"] == "bench model"
    assert figures["versions"]["torch"]
    assert [row["batch"] for row in figures["rows"]] == [1, 2]
    assert all(0 < row["matrix_share"] < 2 for row in figures["rows"])
    assert all(row["memory_bytes"] > 0 for row in figures["rows"])
    assert Path("figures.svg").read_text().startswith("<?xml")


def test_a_service_is_started_loaded_and_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = "serve --connections 1 --rates 20 --seconds 0.5 --warm-up 0.2 --max-batch 2 --seed 3"
    ended = bench(*command.split(), "--json", "figures.json", "--plot", "figures.png")
    assert ended.returncode == 0, ended.stderr
    assert "1 connection " in ended.stdout
    assert "20 a second" in ended.stdout
    closed, opened = json.loads(Path("figures.json").read_text())["steps"]
    for step in (closed, opened):
        assert step["errors"] == {}
        assert step["answered"] > 0
        assert step["server"]["mean_batch"] >= 1
        assert set(step["server"]["stages"]) == {"receive", "decode", "queue", "device", "respond", "other"}
        assert {"supervisor", "engine", "worker"} <= set(step["server"]["cores"])
    assert Path("figures.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("serve ftp://here", "ftp://here is no address such as"),
        ("serve http://127.0.0.1:1 --max-batch 3", "--max-batch is for a service that bench starts itself"),
        ("serve --port 1", "unrecognized arguments: --port"),
        ("serve --rates fast", "'fast' is no number"),
        ("serve --rates 0", "must be above 0"),
        ("serve --connections 1,x", "'x' is no whole number"),
        ("serve --header nothing", "a header is 'NAME: VALUE'"),
        ("serve --queue-limit 0", "VOLO_QUEUE_LIMIT / --queue-limit"),
        ("model --plot figures.pdf", "must end in .svg or .png"),
        ("model --precision int4", "there is no precision 'int4'"),
        ("model --seconds -1", "must be above 0"),
    ],
)
def test_what_is_mistyped_is_told_in_a_line(bench: Bench, command: str, complaint: str) -> None:
    ended = bench(*command.split())
    assert ended.returncode == 2
    assert complaint in ended.stderr.splitlines()[-1]
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("serve http://127.0.0.1:1", "nobody answers at http://127.0.0.1:1/predict (connection)"),
        ("serve http://127.0.0.1:1 --pictures .", ". has no JPEG files"),
        ("serve --model volo_d9_224", "'volo_d9_224' is neither a file nor a model"),
        ("model volo_d9_224", "'volo_d9_224' is neither a file nor a model"),
        ("model --device cuda:99", "The device cuda:99 was asked for"),
        ("model --precision float16", "float16"),
        ("preprocess volo_d9_224", "'volo_d9_224' is neither a file nor a model"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(bench: Bench, command: str, complaint: str) -> None:
    ended = bench(*command.split())
    assert ended.returncode == 1
    assert complaint in ended.stderr
    assert ended.stdout == ""
