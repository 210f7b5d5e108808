"""Who looks at many pictures: a model here, or a service that is not always there."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from running import CAT, started

from service.device import OutOfMemory
from service.outputs import Outputs
from service.predict.results import Record
from service.predict.scorers import CannotGoOn, LocalScorer, RemoteScorer
from service.settings import Settings


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
MISSING = Path(os.fsdecode(b"caf\xe9.jpg"))
NO_FILE = {"file": "caf\\xe9.jpg", "error": "unreadable_file", "detail": "No such file or directory"}


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
    with scripted() as url:
        assert RemoteScorer(url, SETTINGS, 5, 0.0).score([MISSING]) == [{**NO_FILE, "model": "m"}]
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
    assert scorer.score([MISSING]) == [{**NO_FILE, "model": "embedded"}]


def test_whoever_interrupts_does_not_wait_for_the_service(tmp_path: Path) -> None:
    hanging, out = threading.Event(), tmp_path / "results.jsonl"
    with (
        scripted(hanging=hanging) as url,
        started("predict", str(CAT), "--out", str(out), "--url", url) as process,
    ):
        assert hanging.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130  # the service would have had a minute
