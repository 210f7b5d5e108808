"""`volo predict` over many files: here and by a server, interrupted and resumed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from calling import application, listening, serving_engine
from PIL import Image
from running import CAT, ROOT, environment, run, until

from service.predict.bulk import scored
from service.predict.pictures import find
from service.predict.results import Record
from service.predict.scorers import RemoteScorer, ServiceGone


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, a broken one, and what is none."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    picture = CAT.read_bytes()
    for name in ("b.jpg", "a.JPG", "deeper/c.jpeg", ".hidden/d.jpg", ".e.jpg"):
        (folder / name).write_bytes(picture)
    (folder / "broken.jpg").write_bytes(picture[:2000])
    (folder / "notes.txt").write_text("no picture")
    return folder


def lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_folders_are_searched_in_the_order_of_names(photos: Path) -> None:
    found = [str(file.relative_to(photos)) for file in find([photos])]
    assert found == ["a.JPG", "b.jpg", "broken.jpg", "deeper/c.jpeg"]
    assert list(find([photos / "notes.txt", photos / "missing.jpg"])) == [photos / "notes.txt", photos / "missing.jpg"]


def test_a_folder_becomes_a_table_with_its_failures(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    ended = run("predict", str(photos), "missing.jpg", "--out", str(out), "--top-k", "2")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("volo: 5 pictures, 2 failed, ")
    good, _, broken, _, missing = lines(out)
    assert good["file"] == str(photos / "a.JPG")
    assert good["model"] == "embedded"
    assert [each.keys() for each in good["predictions"]] == [{"label", "index", "wnid", "score"}] * 2
    assert (broken["error"], missing["error"]) == ("truncated_image", "unreadable_file")
    assert missing["detail"] == "No such file or directory"
    again = run("predict", str(photos), "missing.jpg", "--out", str(out))
    assert again.returncode == 0
    assert again.stderr.startswith("volo: 0 pictures, 0 failed, 0/s, 5 were there before")
    assert len(lines(out)) == 5


async def test_a_server_gives_what_the_model_here_gives(photos: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    async with serving_engine() as engine, listening(application(engine)) as port:
        url = f"http://127.0.0.1:{port}"
        ended = await asyncio.to_thread(run, "predict", str(photos), "--out", str(there), "--url", url)
    assert ended.returncode == 1, ended.stderr
    await asyncio.to_thread(run, "predict", str(photos), "--out", str(here))
    ours, theirs = lines(here), lines(there)
    assert [record["file"] for record in ours] == [record["file"] for record in theirs]
    assert [record.get("error") for record in ours] == [record.get("error") for record in theirs]
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]


class Scripted(BaseHTTPRequestHandler):
    """Answers with one status after the other."""

    statuses: list[int]

    def do_GET(self) -> None:
        self._answer(200, {"models": [{"name": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status = self.statuses.pop(0)
        if status == 0:
            self.close_connection = True
            return
        body: dict[str, Any] = {"predictions": []} if status == 200 else {"code": "some_code", "detail": "Some detail."}
        self._answer(status, body)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def scripted(*statuses: int) -> Iterator[str]:
    handler = type("Handler", (Scripted,), {"statuses": list(statuses)})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_may_go_better_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.predict.scorers.RETRY_S", 0.0)
    with scripted(503, 0, 504, 200, 415) as url:
        scorer = RemoteScorer(url, None, 5, 0.0)
        assert scorer.score([CAT]) == [{"file": str(CAT), "model": "m", "predictions": []}]
        assert scorer.score([CAT])[0]["error"] == "some_code"


def test_a_service_that_stays_away_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(503, 401) as url:
        scorer = RemoteScorer(url, None, 5, 0.0)
        monkeypatch.setattr("service.predict.scorers.PATIENCE_S", 0.0)
        with pytest.raises(ServiceGone, match="does not answer: status 503"):
            scorer.score([CAT])
        with pytest.raises(ServiceGone, match="refuses"):
            scorer.score([CAT])
        monkeypatch.undo()
        with pytest.raises(ServiceGone, match="serves no model 'other'"):
            RemoteScorer(url, "other", 5, 0.0)
    with pytest.raises(ServiceGone, match="no service of ours"):
        RemoteScorer("http://127.0.0.1:9", None, 5, 0.0)


class Held:
    """Scores in two threads, two at a time, while its gate is open."""

    model, chunk, threads = "m", 2, 2

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.stopped = False

    def score(self, files: Sequence[Path]) -> list[Record]:
        assert self.gate.wait(20)
        return [{"file": str(file)} for file in files]

    def stop(self) -> None:
        self.stopped = True


def test_no_more_is_taken_up_than_can_be_held_and_the_order_is_kept() -> None:
    taken: list[Path] = []

    def files() -> Iterator[Path]:
        for number in range(100):
            taken.append(Path(str(number)))
            yield taken[-1]

    scorer = Held()
    scorer.gate.set()
    found = scored(files(), scorer)
    assert next(found) == {"file": "0"}
    assert len(taken) == 8  # two chunks of two for each of two threads
    assert [int(record["file"]) for record in found] == list(range(1, 100))
    assert scorer.stopped


def test_interrupted_it_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "results.csv"
    folder.mkdir()
    file = BytesIO()
    Image.open(CAT).resize((2000, 1500)).save(file, "JPEG")
    for number in range(400):
        (folder / f"{number:03}.jpg").write_bytes(file.getvalue())
    command = [sys.executable, "-m", "service", "predict", str(folder), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "results.csv.journal"
    until(lambda: journal.exists() and journal.stat().st_size)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "volo: interrupted; the same command goes on from here"
    before = len(journal.read_text().splitlines())
    assert 0 < before < 400
    assert not out.exists()
    for number in range(before + 8, 400):
        (folder / f"{number:03}.jpg").unlink()
    ended = run("predict", str(folder), "--out", str(out))
    assert ended.returncode == 0
    assert f"{before} were there before" in ended.stderr
    assert len(out.read_text().splitlines()) == 1 + min(400, before + 8)
    assert not journal.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--url", "http://127.0.0.1:9"], "--url needs --out"),
        (["--out", "results.txt"], "is none of"),
        (["--threshold", "2"], "must be from 0 to 1"),
    ],
)
def test_what_cannot_be_asked_for_is_said(arguments: list[str], complaint: str) -> None:
    ended = run("predict", str(CAT), *arguments)
    assert ended.returncode == 2
    assert complaint in ended.stderr
