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
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from shutil import rmtree

import pytest
from calling import application, listening, serving_engine
from PIL import Image
from pydantic import SecretStr
from running import CAT, ROOT, environment, run, serving, started, until

from service.errors import TooManyBytes
from service.predict import progress
from service.predict.bulk import predict_all, scored
from service.predict.pictures import find, name_of, read
from service.predict.progress import Rate, shown
from service.predict.results import Record, Results


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


class Held:
    """Scores in two threads, two at a time, while its gate is open."""

    model, chunk, threads = "m", 2, 2

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.stopped = False

    def score(self, files: Sequence[Path]) -> list[Record]:
        assert self.gate.wait(20)
        return [{"file": name_of(file), "model": "m", "predictions": []} for file in files]

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
    assert next(found)["file"] == "0"
    assert len(taken) == 8  # two chunks of two for each of two threads
    assert [int(record["file"]) for record in found] == list(range(1, 100))
    assert scorer.stopped


def test_a_picture_of_any_name_is_found_again(tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "results.jsonl"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.jpg")).touch()
    for _ in range(2):
        scorer = Held()
        scorer.gate.set()
        with Results(out, "m") as results:
            predict_all([folder], results, scorer)
    assert [record["file"] for record in lines(out)] == [f"{folder}/caf\\xe9.jpg"]


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


def test_a_pipe_in_a_folder_is_left_out_because_it_might_never_end(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(CAT.read_bytes())
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "to_pipe.jpg").symlink_to("pipe.jpg")
    (tmp_path / "to_nothing.jpg").symlink_to("missing.jpg")
    assert list(find([tmp_path])) == [tmp_path / "a.jpg", tmp_path / "to_nothing.jpg"]
