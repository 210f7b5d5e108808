"""Disks that are full, or cannot be written: it is said what is wrong, no half is left, and what runs goes on."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random
from zipfile import ZIP_STORED

import httpx
import pytest
from disks import HUB_FILE, Disk, small_disk, weights_on, why_not_started
from file_server import serving as serving_files
from packing import packed_zip
from running import CAT, PATIENCE_S, Service, serving, until


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with small_disk(tmp_path_factory.mktemp("service") / "tmp", "12m") as disk:
        yield disk


@pytest.fixture(scope="module")
def service(disk: Disk) -> Iterator[Service]:
    """With that disk for its temporary files, sockets and metrics."""
    with serving(disk.path.parent, within=disk.within, VOLO_WORKERS="1") as service:
        until(service.is_ready)
        yield service


def send_zip(service: Service, archive: bytes) -> httpx.Response:
    kind = {"Content-Type": "application/zip"}
    return httpx.post(f"{service.url}/predict/batch", content=archive, headers=kind, timeout=PATIENCE_S)


def test_a_zip_that_finds_no_room_is_told_so_and_its_room_is_given_back(service: Service, disk: Disk) -> None:
    noise = Random(0).randbytes(20_000)
    before = disk.free_bytes
    refused = send_zip(service, packed_zip({f"{number}.jpg": noise for number in range(1000)}, ZIP_STORED))
    assert (refused.status_code, refused.json()["code"]) == (507, "insufficient_storage")
    assert "tar" in refused.json()["detail"]
    until(lambda: disk.free_bytes == before)
    (told,) = service.said("no room for a zip")
    assert (told["folder"], told["reason"]) == (str(disk.path), "No space left on device")
    answered = send_zip(service, packed_zip({"cat.jpg": CAT.read_bytes()}))
    assert [json.loads(line)["status"] for line in answered.text.splitlines()] == [200]


def test_on_a_full_disk_all_goes_on_and_who_ends_is_replaced(service: Service, disk: Disk) -> None:
    assert service.predict().status_code == 200
    answered = service.counted("volo_requests_total", endpoint="/predict", outcome="ok")
    with disk.full():
        assert send_zip(service, packed_zip({"cat.jpg": CAT.read_bytes()})).status_code == 507
        for path in ("/predict?evidence=true&overlay=true", "/embed", "/hf", "/predictions/embedded"):
            assert httpx.post(service.url + path, content=CAT.read_bytes(), timeout=PATIENCE_S).status_code == 200
        for title in ("volo: worker 0", "volo: engine embedded cpu"):
            dead = service.children[title]
            os.kill(dead, signal.SIGKILL)
            until(lambda dead=dead, title=title: service.children.get(title, dead) != dead)  # type: ignore[misc]
            until(service.is_ready)
            assert service.predict().status_code == 200
        until(lambda: service.counted("volo_requests_total", endpoint="/predict", outcome="ok") == answered + 3)
        assert service.counted("volo_worker_restarts_total") == service.counted("volo_engine_restarts_total") == 1


def test_without_room_for_metrics_it_does_not_start_and_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "tmp", "64k") as disk, serving(tmp_path, within=disk.within) as service:
        assert service.process.wait(PATIENCE_S) == 1
        assert f"no room for 262,144 bytes of metrics in {disk.path}" in service.text
        assert "Traceback" not in service.text
        assert disk.files == set()


def test_weights_that_the_cache_has_no_room_for_are_a_clear_message_and_no_half_is_left(tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", "2m") as disk, serving_files() as hub:
        hub.files = {HUB_FILE: bytes(3_000_000)}
        reason = why_not_started(tmp_path, disk, hub.url)
        assert f"No space left on device in {disk.path}/hub" in reason
        assert weights_on(disk) == []
