"""Disks, caches, weights and hubs at their worst: it is said what is wrong, and what was served goes on as it was."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import torch
from disks import HUB_FILE, downloading, small_disk, weights_on, why_not_started
from file_server import COMMIT
from file_server import serving as serving_files
from packing import ndjson
from running import CAT, PATIENCE_S, Service, run, serving, until
from safetensors.torch import save_file

import models

ADMIN = {"Authorization": "Bearer s3cret-of-admins"}
NOWHERE = "http://127.0.0.1:1"
COUNT = 300
"""So many pictures whose lines have 95 kB each."""
WEIGHTS = Random(0).randbytes(100_000)


def answer(service: Service) -> Any:
    """All that the model says of the cat."""
    told = httpx.post(f"{service.url}/predict?top_k=10", content=CAT.read_bytes(), timeout=PATIENCE_S)
    assert told.status_code == 200, told.text
    return told.json()["predictions"]


def reload(service: Service) -> httpx.Response:
    return httpx.post(f"{service.url}/admin/reload", headers=ADMIN, timeout=PATIENCE_S)


# Weights that are damaged while they are served


def save(path: Path, **changes: torch.Tensor) -> None:
    torch.manual_seed(0)
    state = models.create_model("volo_nano", image_size=32, num_classes=10).state_dict() | changes
    if path.suffix == ".safetensors":
        save_file(state, path, {"labels": json.dumps([f"class {number}" for number in range(10)])})
    else:
        torch.save({"state_dict": state}, path)


def overwritten(path: Path, start: int, data: bytes) -> None:
    """In place: whoever had mapped the file would see it at once."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: os.truncate(path, 0),
    "cut in its head": lambda path: os.truncate(path, 100),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "without its last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "noise at its beginning": lambda path: overwritten(path, 0, Random(0).randbytes(1000)),
    "all zeros": lambda path: overwritten(path, 0, bytes(path.stat().st_size)),
    "no number in it": lambda path: save(path, **{"head.bias": torch.full((10,), torch.nan)}),
    "another shape": lambda path: save(path, **{"head.bias": torch.zeros(11)}),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_weights_are_not_taken_and_those_before_go_on_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    path, labels = tmp_path / f"pets{suffix}", tmp_path / "labels.txt"
    labels.write_text("\n".join(f"class {number}" for number in range(10)))
    save(path)
    variables = {"VOLO_MODEL": str(path), "VOLO_LABELS": str(labels), "VOLO_ADMIN_KEY": "s3cret-of-admins"}
    with serving(tmp_path / "service", **variables) as service:
        until(service.is_ready)
        before, children = answer(service), service.children
        kept = path.read_bytes()
        for damage in DAMAGES.values():
            damage(path)
            assert answer(service) == before
            refused = reload(service)
            assert (refused.status_code, refused.json()["code"]) == (409, "reload_failed")
            assert path.name in refused.json()["detail"]
            assert answer(service) == before
            assert service.children == children
            path.write_bytes(kept)
        damage(path)
        service.process.send_signal(signal.SIGHUP)
        (told,) = until(lambda: service.said("model not reloaded, the one before goes on"))
        assert path.name in told["reason"]
        assert answer(service) == before
        path.write_bytes(kept)
        assert reload(service).status_code == 200
        assert answer(service) == before
        damage(path)
        os.kill(service.children["volo: engine pets cpu"], signal.SIGKILL)
        assert service.process.wait(PATIENCE_S) == 78
        assert path.name in service.said("cannot start")[-1]["reason"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_weights_at_the_start_are_a_message_that_names_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pets{suffix}"
    save(path)
    os.truncate(path, path.stat().st_size // 2)
    with serving(tmp_path / "service", VOLO_MODEL=str(path)) as service:
        assert service.process.wait(PATIENCE_S) == 78
        (told,) = service.said("cannot start")
        assert f"{path} is torn, or no checkpoint" in told["reason"]
        assert "Traceback" not in service.text


def test_weights_that_are_not_those_pinned_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pets.safetensors"
    save(path)
    pinned = sha256(path.read_bytes()).hexdigest()
    overwritten(path, path.stat().st_size // 2, b"another")
    with serving(tmp_path / "service", VOLO_MODEL=str(path), VOLO_WEIGHTS_SHA256=pinned) as service:
        assert service.process.wait(PATIENCE_S) == 78
        (told,) = service.said("cannot start")
        assert f"{path} has the SHA-256" in told["reason"]


# Hubs


class BadHub(BaseHTTPRequestHandler):
    """A hub that answers by the path's first part."""

    over = threading.Event()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        fault = self.path.split("/")[1]
        if fault == "hangs":
            self.over.wait()
        elif fault == "fails":
            self._head(500, {})
        elif fault == "leads-in-circles":
            self._head(302, {"Location": self.path})
        elif fault == "web-page":
            self._head(200, {"Content-Type": "text/html"}, b"<html>Please sign in</html>")
        else:
            self._send_weights(fault)

    def _send_weights(self, fault: str) -> None:
        digest = f'"{sha256(WEIGHTS).hexdigest()}"'
        self._head(200, {"ETag": digest, "X-Linked-Etag": digest, "X-Repo-Commit": COMMIT}, length=len(WEIGHTS))
        if self.command == "GET":
            self.wfile.write(WEIGHTS[:50_000])
            if fault == "stops":
                self.over.wait()

    def _head(self, status: int, headers: dict[str, str], body: bytes = b"", length: int = 0) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length or len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def bad_hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BadHub) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        BadHub.over.clear()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            BadHub.over.set()
            http.shutdown()
            thread.join()


HUBS = {
    "hangs": "timed out",
    "fails": "500 Internal Server Error",
    "leads-in-circles": "redirects",
    "web-page": "does not seem to be served by a Hugging Face Hub",
    "is-cut": "50000 bytes, expected 100000",
    "stops": "timed out",
}


@pytest.mark.parametrize("fault", HUBS)
def test_a_hub_that_does_not_give_weights_is_a_clear_message_and_no_half_is_left(tmp_path: Path, fault: str) -> None:
    with small_disk(tmp_path / "cache", "2m") as disk, bad_hub() as hub:
        variables = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
        reason = why_not_started(tmp_path, disk, f"{hub}/{fault}", **variables)
        assert "timm/volo_d1_224.sail_in1k" in reason
        assert HUBS[fault] in reason
        assert "github.com" in reason  # what was tried then
        assert weights_on(disk) == []


def test_a_hub_that_is_not_there_is_a_clear_message(tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", "2m") as disk:
        reason = why_not_started(tmp_path, disk, NOWHERE)
        assert "timm/volo_d1_224.sail_in1k: " in reason
        assert "Connection refused" in reason


def test_other_weights_than_those_pinned_are_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", "2m") as disk, serving_files() as hub:
        hub.files = {HUB_FILE: WEIGHTS}
        reason = why_not_started(tmp_path, disk, hub.url, VOLO_WEIGHTS_SHA256="0" * 64)
        assert f"has the SHA-256 {sha256(WEIGHTS).hexdigest()}, not the pinned 000000" in reason


def test_torn_weights_from_a_hub_are_named_and_what_to_do(tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", "2m") as disk, serving_files() as hub:
        hub.files = {HUB_FILE: WEIGHTS}
        reason = why_not_started(tmp_path, disk, hub.url)
        assert "model.safetensors is torn, or no checkpoint" in reason
        assert reason.endswith("delete it to have it downloaded again")


def test_a_cache_that_cannot_be_written_is_a_clear_message(tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", "2m") as disk, serving_files() as hub:
        hub.files = {HUB_FILE: WEIGHTS}
        disk.protect()
        reason = why_not_started(tmp_path, disk, hub.url)
        assert "Read-only file system" in reason
        assert str(disk.path) in reason


def test_what_is_cached_is_served_without_hub_and_room_and_goes_on_when_it_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", "200m") as disk:
        cached = disk.seen / "hub/models--timm--volo_d1_224.sail_in1k/snapshots" / COMMIT / "model.safetensors"
        cached.parent.mkdir(parents=True)
        (cached.parents[2] / "refs").mkdir()
        (cached.parents[2] / "refs/main").write_text(COMMIT)
        torch.manual_seed(0)
        save_file(models.create_model("volo_d1").state_dict(), cached)
        disk.protect()
        variables = {**downloading(disk, NOWHERE), "VOLO_MAX_BATCH": "1", "VOLO_TIMEOUT_S": "60"}
        with serving(tmp_path, within=disk.within, VOLO_ADMIN_KEY="s3cret-of-admins", **variables) as service:
            until(service.is_ready)
            before = answer(service)
            assert reload(service).status_code == 200
            assert answer(service) == before
            disk.protect(False)
            cached.unlink()
            refused = reload(service)
            assert (refused.status_code, refused.json()["code"]) == (409, "reload_failed")
            assert "timm/volo_d1_224.sail_in1k" in refused.json()["detail"]
            assert answer(service) == before


# Full disks


def test_who_finds_no_room_at_its_start_is_started_again_until_there_is_some(tmp_path: Path) -> None:
    with small_disk(tmp_path / "tmp", "4m") as disk, serving(tmp_path, within=disk.within) as service:
        until(lambda: service.said("starting"))
        with disk.full():
            for said in "no room for ", "process ended":
                until(lambda said=said: said in service.text)  # type: ignore[misc]
        until(service.is_ready)
        assert service.predict().status_code == 200


def test_a_log_on_a_full_disk_costs_its_lines_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "logs", "64k") as disk:
        to_disk = (*disk.within, "sh", "-c", 'exec "$@" 2>"$0"', str(disk.path / "log"))
        with serving(tmp_path, within=to_disk) as started:
            service = Service(started.process, disk.seen / "log")
            until((disk.seen / "log").exists)
            until(service.is_ready)
            with disk.full():
                for title in ("volo: engine embedded cpu", "volo: worker 0"):
                    dead = service.children[title]
                    os.kill(dead, signal.SIGKILL)
                    until(lambda dead=dead, title=title: service.children.get(title, dead) != dead)  # type: ignore[misc]
                    until(service.is_ready)
                assert service.predict().status_code == 200
            service.process.terminate()
            assert service.process.wait(PATIENCE_S) == 0


def test_lines_that_nobody_reads_are_cut_short_where_the_disk_is_full_and_the_last_says_so(tmp_path: Path) -> None:
    settings = {"VOLO_WORKERS": "1", "VOLO_TIMEOUT_S": "60"}
    with small_disk(tmp_path / "tmp", "6m") as disk, serving(tmp_path, within=disk.within, **settings) as service:
        until(service.is_ready)
        before = disk.free_bytes
        port = int(service.url.rpartition(":")[2])
        body = ndjson({str(number): CAT.read_bytes() for number in range(COUNT)})
        head = (
            "POST /predict/batch?evidence=true&overlay=true&top_k=10 HTTP/1.1\r\n"
            "Host: volo\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with disk.full(), socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)  # so that little waits on its way
            caller.settimeout(PATIENCE_S)
            caller.connect(("127.0.0.1", port))
            caller.sendall(head.encode() + body)
            until(lambda: service.said("no room for lines that wait to be read"))
            reply = HTTPResponse(caller)
            reply.begin()
            lines = [json.loads(line) for line in reply.read().splitlines()]
        assert reply.status == 200
        assert [line["index"] for line in lines[:-1]] == list(range(len(lines) - 1))
        assert 0 < len(lines) < COUNT
        assert (lines[-1]["status"], lines[-1]["code"]) == (507, "insufficient_storage")
        until(lambda: disk.free_bytes == before)
        assert service.predict().status_code == 200
        assert service.counted("volo_requests_total", outcome="insufficient_storage") == 1


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_results_without_room_are_a_clear_message_and_gone_on_with(tmp_path: Path, suffix: str) -> None:
    samples = str(CAT.parent)
    with small_disk(tmp_path / "results", "64k") as disk:
        out = f"{disk.path}/labels.{suffix}"
        with disk.full(but_bytes=4096):
            failed = run("predict", samples, "--out", out, "--top-k", "20", within=disk.within)
            assert failed.returncode == 1
            assert failed.stderr.endswith(
                f"volo: {out}: [Errno 28] No space left on device\n"
                "volo: what is done is kept; the same command goes on from there\n"
            )
            assert disk.files == {"filling", f"labels.{suffix}" + ".journal" * (suffix == "csv")}
        gone_on = run("predict", samples, "--out", out, "--top-k", "20", within=disk.within)
        assert gone_on.returncode == 0
        assert disk.files == {f"labels.{suffix}"}


def test_figures_without_room_are_shown_and_no_half_is_left(tmp_path: Path) -> None:
    with small_disk(tmp_path / "figures", "64k") as disk, disk.full():
        out = f"{disk.path}/figures.json"
        quick = ("--batch", "1", "--seconds", "0.1")
        failed = run("bench", "model", "embedded", *quick, "--json", out, within=disk.within)
        assert failed.returncode == 1
        assert "pictures/s" in failed.stdout
        assert failed.stderr.endswith(f"volo: {out} cannot be written: No space left on device\n")
        assert disk.files == {"filling"}
