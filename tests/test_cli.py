"""The command line: what people type, and what it says when they mistype."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from running import CAT, PATIENCE_S, ROOT, environment, run

from service.__main__ import main
from service.settings import Settings

ROCKET = CAT.with_name("rocket.jpg")


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Volo = Callable[..., Ended]


@pytest.fixture
def volo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Volo:
    """Runs a command in this process, where torch is loaded already."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VOLO_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*command: str, **variables: str) -> Ended:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["volo", *command])
        with pytest.raises(SystemExit) as exit_:
            main()
        return Ended(int(exit_.value.code or 0), *capsys.readouterr())

    return run


def test_without_a_command_it_tells_which_there_are(volo: Volo) -> None:
    ended = volo()
    assert ended.returncode == 0
    assert all(command in ended.stdout for command in ("serve", "predict", "bench", "models"))


def test_it_tells_its_version(volo: Volo) -> None:
    assert volo("--version").stdout == f"volo {version('volo-serve')}\n"


def test_help_for_serve_names_every_setting_with_its_default(volo: Volo) -> None:
    text = volo("serve", "--help", COLUMNS="200").stdout
    assert "--max-batch N" in text
    assert "Port to listen on; 0 takes a free one. (8000)" in text
    assert "--timeout-s SECONDS" in text


def test_a_bad_value_is_one_line_that_tells_where_it_may_come_from(volo: Volo) -> None:
    ended = volo("serve", "--port", "eighty")
    assert ended.returncode == 2
    assert ended.stderr.startswith("volo: VOLO_PORT / --port: ")
    assert "eighty" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_settings_that_do_not_fit_together_are_one_line_too(volo: Volo) -> None:
    ended = volo("serve", "--models", "embedded,embedded")
    assert ended.returncode == 2
    assert ended.stderr.startswith("volo: models: ")
    assert len(ended.stderr.splitlines()) == 1


def test_keys_are_no_options_and_a_bad_one_is_not_shown(volo: Volo) -> None:
    help_ = volo("serve", "--help").stdout
    assert "--api-keys" not in help_
    assert "--admin-key" not in help_
    ended = volo("serve", VOLO_API_KEYS="s3cret,,")
    assert (ended.returncode, ended.stderr) == (2, "volo: VOLO_API_KEYS: an empty key is none\n")


def test_every_bad_value_gets_its_line(volo: Volo) -> None:
    ended = volo("predict", "x.jpg", "--max-pixels", "-1", VOLO_DEVICE="gpu")
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert [line.partition(" / ")[0] for line in lines] == ["volo: VOLO_DEVICE", "volo: VOLO_MAX_PIXELS"]


def test_predict_names_what_is_in_files_and_complains_about_those_it_cannot_read(volo: Volo, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    missing = tmp_path / "missing.jpg"
    ended = volo("predict", "--json", "--top-k", "2", *map(str, (CAT, text, missing, ROCKET)))
    assert ended.returncode == 1
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == [str(CAT), str(ROCKET)]
    assert all(answer["model"] == "embedded" for answer in answers)
    for answer in answers:
        first, second = answer["predictions"]
        assert first.keys() == {"label", "index", "wnid", "score"}
        assert first["score"] >= second["score"]
    complaints = ended.stderr.splitlines()
    assert complaints[0].startswith(f"volo: {text}: The data is not a picture")
    assert complaints[1] == f"volo: {missing}: No such file or directory"


def test_predict_shows_a_table_with_whole_file_names_when_piped(volo: Volo, tmp_path: Path) -> None:
    file = tmp_path / ("a_long_name_" * 10 + ".jpg")
    file.write_bytes(CAT.read_bytes())
    ended = volo("predict", "--top-k", "2", str(file))
    assert ended.returncode == 0
    title, first, second = ended.stdout.splitlines()
    assert title.split() == ["file", "label", "score"]
    assert first.startswith(str(file))
    assert first.rstrip().endswith("%")
    assert second.startswith(" ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "volo_d9_224"], "'volo_d9_224' is neither a file nor a model"),
        (["--model", str(CAT)], "is torn, or no checkpoint"),
        (["--labels", "/nowhere"], "No such file or directory"),
        (["--device", "cuda:99"], "The device cuda:99 was asked for"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_clear_line(volo: Volo, arguments: list[str], complaint: str) -> None:
    ended = volo("predict", str(CAT), *arguments)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("volo: ")
    assert complaint in ended.stderr


def test_a_count_of_labels_below_one_is_refused(volo: Volo) -> None:
    ended = volo("predict", str(CAT), "--top-k", "0")
    assert ended.returncode == 2
    assert "must be at least 1" in ended.stderr


def test_the_table_of_models_fits_80_columns_with_nothing_cut_or_folded() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service", "models"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(COLUMNS="80", NO_COLOR="1"), stdout=theirs) as process:
        os.close(theirs)
        text = ""
        while chunk := _read(ours):
            text += chunk
    os.close(ours)
    assert process.returncode == 0
    lines = text.splitlines()
    assert len(lines) == 13
    assert all("timm/volo" in line and line.rstrip().endswith("_in1k") for line in lines if line.startswith("volo"))
    assert lines[1].split() == ["volo_d1_224", "224", "0.96", "1000", "26.6M", "6.9", "84.2%", lines[1].split()[-1]]


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 10_000).decode()
    except OSError:  # what a terminal says when the other side is closed
        return ""


def test_whoever_reads_no_further_than_the_head_gets_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "service", "models"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout
        command.stdout.close()
        _, said = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, said) == (1, "")


def test_a_file_of_settings_that_is_no_text_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"VOLO_PORT=9000\n# caf\xe9\n")
    ended = run("serve", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "volo: .env is not UTF-8: byte 20 is 0xe9\n")
    ended = run("doctor", "--quick", cwd=tmp_path)
    assert (ended.returncode, "byte 20 is 0xe9" in ended.stdout) == (1, True)
