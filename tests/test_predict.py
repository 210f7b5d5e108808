"""`volo predict` over many files: here and by a server, interrupted and resumed."""

import asyncio
import csv
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from calling import application, listening, serving_engine
from numpy.typing import NDArray
from PIL import Image
from pydantic import SecretStr
from running import CAT, ROOT, environment, run, serving, until

from service.device import OutOfMemory
from service.errors import TooManyBytes
from service.outputs import Outputs
from service.predict import progress
from service.predict.bulk import scored
from service.predict.pictures import find, name_of, read
from service.predict.progress import Rate, shown
from service.predict.results import Record
from service.predict.scorers import CannotGoOn, LocalScorer, RemoteScorer
from service.settings import Settings


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


def test_a_link_that_leads_back_is_not_followed(photos: Path) -> None:
    (photos / "deeper" / "back").symlink_to(photos)
    (photos / "deeper" / "itself").symlink_to("itself")
    (photos / "elsewhere").symlink_to(photos / "deeper")
    found = [str(file.relative_to(photos)) for file in find([photos])]
    assert found == ["a.JPG", "b.jpg", "broken.jpg", "deeper/c.jpeg", "elsewhere/c.jpeg"]


def test_a_folder_that_cannot_be_read_stands_for_its_pictures(photos: Path) -> None:
    found = find([photos])
    assert next(found) == photos / "a.JPG"
    rmtree(photos / "deeper")
    assert list(found) == [photos / "b.jpg", photos / "broken.jpg", photos / "deeper"]


def test_a_name_that_is_no_utf_8_has_escapes() -> None:
    assert name_of(Path(os.fsdecode(b"caf\xe9 \xc3\xa9.jpg"))) == "caf\\xe9 é.jpg"


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    file.write_bytes(bytes(81))
    with pytest.raises(TooManyBytes, match="more than the 80 bytes that 10 pixels can take"):
        read(file, max_pixels=10)


def test_a_folder_becomes_a_table_with_its_failures(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    ended = run("predict", str(photos), "missing.jpg", "--out", str(out), "--top-k", "2")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"volo: {out}: 5 pictures, 2 failed; 5 new, ")
    good, _, broken, _, missing = lines(out)
    assert good["file"] == str(photos / "a.JPG")
    assert good["model"] == "embedded"
    assert [each.keys() for each in good["predictions"]] == [{"label", "index", "wnid", "score"}] * 2
    assert (broken["error"], missing["error"]) == ("truncated_image", "unreadable_file")
    assert missing["detail"] == "No such file or directory"
    again = run("predict", str(photos), "missing.jpg", "--out", str(out))
    assert again.returncode == 1
    assert again.stderr.startswith(f"volo: {out}: 5 pictures, 2 failed; 0 new, ")
    assert len(lines(out)) == 5


def test_a_picture_of_any_name_is_found_again(tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "results.jsonl"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(CAT.read_bytes())
    for new in (1, 0):
        ended = run("predict", str(folder), "--out", str(out))
        assert ended.returncode == 0, ended.stderr
        assert f": 1 picture, 0 failed; {new} new, " in ended.stderr
    assert [record["file"] for record in lines(out)] == [f"{folder}/caf\\xe9.jpg"]


def test_a_service_gives_what_the_model_here_gives(photos: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert run("predict", str(photos), "--out", str(here)).returncode == 1
    with serving(tmp_path / "service") as service:
        until(service.is_ready)
        ended = run("predict", str(photos), "--out", str(there), "--url", service.url)
        assert ended.returncode == 1, ended.stderr
    for ours, theirs in zip(lines(here), lines(there), strict=True):
        ours_told, theirs_told = ours.pop("predictions", []), theirs.pop("predictions", [])
        assert ours == theirs
        for one, other in zip(ours_told, theirs_told, strict=True):
            assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
            assert one == other


async def test_a_service_shows_its_answers_to_those_who_have_a_key(photos: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame\n")
    command = ["predict", str(photos), "--json", "--top-k", "1", "--url"]
    async with (
        serving_engine() as engine,
        listening(application(engine, api_keys=SecretStr("sesame"), probes_need_key=True)) as port,
    ):
        url = f"http://127.0.0.1:{port}"
        refused = await asyncio.to_thread(run, *command, url)
        by_file = await asyncio.to_thread(run, *command, url, "--api-key-file", str(key))
        by_environment = await asyncio.to_thread(run, *command, url, VOLO_API_KEY="sesame")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"volo: {url} refuses with status 401: ")
    assert by_file.returncode == 1  # one is broken
    assert by_file.stdout == by_environment.stdout
    assert [json.loads(line)["file"] for line in by_file.stdout.splitlines()] == [
        str(photos / name) for name in ("a.JPG", "b.jpg", "deeper/c.jpeg")
    ]
    assert by_file.stderr.startswith(f"volo: {photos / 'broken.jpg'}: ")


class Scripted(BaseHTTPRequestHandler):
    """Gives one answer after the other: a status and a body, or none; waits for ever once there are no more."""

    answers: list[tuple[int, bytes]]
    hanging: threading.Event
    closing: threading.Event

    def do_GET(self) -> None:
        self._answer(200, b'{"models": [{"name": "m"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if not self.answers:
            self.hanging.set()
            self.closing.wait()
            return
        status, body = self.answers.pop(0)
        if status:
            self._answer(status, body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def scripted(*answers: tuple[int, bytes], hanging: threading.Event | None = None) -> Iterator[str]:
    closing = threading.Event()
    script = {"answers": list(answers), "hanging": hanging or threading.Event(), "closing": closing}
    handler = type("Handler", (Scripted,), script)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        closing.set()
        server.shutdown()


SETTINGS = Settings(max_pixels=1_000_000)
NOTHING = b'{"predictions": []}'
PROBLEM = b'{"code": "some_code", "detail": "Some detail."}'
GONE = (0, b"")


def asked(url: str, model: str | None = None) -> Record:
    """What the service says of the cat."""
    (record,) = RemoteScorer(url, SETTINGS, 5, 0.0, model).score([CAT])
    assert (record.pop("file"), record.pop("model")) == (str(CAT), "m")
    return record


def test_what_may_go_better_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.predict.scorers.RETRY_S", 0.0)
    with scripted((503, PROBLEM), GONE, (504, PROBLEM), (429, b""), (200, NOTHING)) as url:
        assert asked(url) == {"predictions": []}


def test_what_is_wrong_with_a_picture_is_its_record() -> None:
    with scripted((415, PROBLEM), (413, b"<html>of a proxy</html>")) as url:
        assert asked(url) == {"error": "some_code", "detail": "Some detail."}
        assert asked(url) == {"error": "http_413", "detail": "Request Entity Too Large"}


def test_a_picture_that_always_takes_too_long_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted((504, PROBLEM)) as url:
        scorer = RemoteScorer(url, SETTINGS, 5, 0.0)
        scorer.stop()  # so that nothing is tried again
        assert scorer.score([CAT])[0]["error"] == "some_code"


def test_a_service_that_stays_away_is_given_up_on() -> None:
    with scripted((503, PROBLEM)) as url:
        scorer = RemoteScorer(url, SETTINGS, 5, 0.0)
        scorer.stop()
        with pytest.raises(CannotGoOn, match="does not answer: status 503"):
            scorer.score([CAT])


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (401, PROBLEM, "refuses with status 401: Some detail"),
        (422, b'{"code": "invalid_parameter", "detail": "top_k: too many"}', "refuses with status 422: top_k"),
        (200, b"<html>Welcome!</html>", "refuses with status 200: OK"),
    ],
)
def test_what_every_picture_would_get_is_the_end(status: int, body: bytes, complaint: str) -> None:
    with scripted((status, body)) as url, pytest.raises(CannotGoOn, match=complaint):
        asked(url)


def test_a_service_that_is_not_meant_is_refused() -> None:
    with scripted() as url, pytest.raises(CannotGoOn, match="serves no model 'other'; there is m"):
        asked(url, "other")
    for url in ("http://127.0.0.1:9", "nonsense", "http://[", ""):
        with pytest.raises(CannotGoOn, match="no service of ours"):
            asked(url)


class Broken:
    """A device that gives infinity, and then has no memory left."""

    runs = 0

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int) -> Outputs:
        self.runs += 1
        if self.runs > 1:
            raise OutOfMemory("There is no memory left.")
        return Outputs(np.full((len(pictures), 200), np.inf, np.float32))


def test_what_fails_on_the_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = LocalScorer(Settings(device="cpu"), 5, 0.0)
    monkeypatch.setattr(scorer, "_device", Broken())
    assert [record["error"] for record in scorer.score([CAT, CAT])] == ["inference_failed"] * 2
    with pytest.raises(CannotGoOn, match="no memory left"):
        scorer.score([CAT])


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


def test_interrupted_or_killed_it_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, out, journal = tmp_path / "photos", tmp_path / "results.csv", tmp_path / "results.csv.journal"
    folder.mkdir()
    file = BytesIO()
    Image.open(CAT).resize((2000, 1500)).save(file, "JPEG")
    for number in range(600):
        (folder / f"{number:03}.jpg").write_bytes(file.getvalue())
    done = 0
    for how in (signal.SIGKILL, signal.SIGINT):
        with started("predict", str(folder), "--out", str(out)) as process:
            until(lambda: journal.exists() and _count(journal) > done)  # noqa: B023  # it is called right here
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        done = _count(journal)
        assert done < 600
        assert not out.exists()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "volo: interrupted; the same command goes on from here"
    for number in range(done + 8, 600):
        (folder / f"{number:03}.jpg").unlink()
    ended = run("predict", str(folder), "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    with out.open(newline="") as stream:
        names = [row["file"] for row in csv.DictReader(stream)]
    assert names == [str(file) for file in sorted(folder.iterdir())]
    assert not journal.exists()


def _count(journal: Path) -> int:
    return journal.read_bytes().count(b"\n")


def test_whoever_interrupts_does_not_wait_for_the_service(tmp_path: Path) -> None:
    hanging, out = threading.Event(), tmp_path / "results.jsonl"
    with (
        scripted(hanging=hanging) as url,
        started("predict", str(CAT), "--out", str(out), "--url", url) as process,
    ):
        assert hanging.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130  # the service would have had a minute


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "service", *command], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_logs_are_told_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rate = Rate()
    with shown(1000, 10, rate) as tell:
        rate.count = 1
        tell(0)
        monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
        rate.count = 2
        tell(1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("volo: 12 of 1,000 pictures, 1 failed, ")


def test_a_terminal_gets_a_bar(photos: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service", "predict", str(photos), "--out", str(tmp_path / "results.csv")]
    variables = environment(COLUMNS="200", TERM="xterm")
    with subprocess.Popen(command, cwd=ROOT, env=variables, stderr=theirs) as process:
        os.close(theirs)
        text = ""
        with suppress(OSError):  # what a terminal says when the other side is closed
            while True:
                text += os.read(ours, 10_000).decode()
    os.close(ours)
    assert process.returncode == 1
    assert "4/4" in text
    assert "1 failed" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "results.txt"], "is none of"),
        (["--out", "/nowhere/results.csv"], "there is no folder /nowhere"),
        (["--out", "results.csv", "--json"], "not allowed with argument"),
        (["--url", "http://127.0.0.1:9", "--api-key-file", "/nowhere"], "has no key"),
        (["--threshold", "2"], "must be from 0 to 1"),
    ],
)
def test_what_cannot_be_asked_for_is_said(arguments: list[str], complaint: str) -> None:
    ended = run("predict", str(CAT), *arguments)
    assert ended.returncode == 2
    assert complaint in ended.stderr
