"""Single requests and pictures of a batch that all want the same device, for longer than it has time for."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from running import CAT, PATIENCE_S, Service, serving, until

from service.batching import BACKGROUND_SHARE

CROWD = 48
"""Callers who each have always one request under way: many times what fits a run."""
SPAN_S = 15.0


def small_cat() -> bytes:
    """One that takes next to nothing to decode, so that it is the device that all wait for."""
    file = BytesIO()
    Image.open(CAT).convert("RGB").resize((64, 64)).save(file, "PNG")
    return file.getvalue()


PICTURE = small_cat()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path / "service") as service:
        until(service.is_ready)
        yield service


def latencies(url: str, enough: Event) -> list[float]:
    """Of one request after the other, all of which are answered, until there are enough."""
    took = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        while not enough.is_set():
            began_s = time.monotonic()
            assert client.post("/predict", content=PICTURE).status_code == 200
            took.append(time.monotonic() - began_s)
    return took


def named(url: str, pictures: int) -> list[dict[str, Any]]:
    """The lines of the answer to many pictures."""
    files = [("file", (str(number), PICTURE, "image/png")) for number in range(pictures)]
    answer = httpx.post(f"{url}/predict/batch", files=files, timeout=PATIENCE_S)
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_batch_gets_on_while_single_requests_take_all_they_can_get(service: Service) -> None:
    """By its share of the device's time, of which its pictures take more each, because they run one by one."""
    enough = Event()
    with ThreadPoolExecutor(CROWD + 1) as threads:
        crowd = [threads.submit(latencies, service.url, enough) for _ in range(CROWD)]
        until(lambda: service.counted("volo_queue_depth") > 1)
        batch = threads.submit(named, service.url, 300)
        until(lambda: service.counted("volo_background_depth"))
        began = done(service)
        time.sleep(SPAN_S)
        lines, singles = done(service) - began
        waited = service.counted("volo_queue_depth")
        enough.set()
        took = [seconds for caller in crowd for seconds in caller.result()]
        assert [line["status"] for line in batch.result()] == [200] * 300
    print(f"in {SPAN_S:g} s {singles:g} single requests (median {median(took):.3f} s) and {lines:g} of a batch")
    assert waited > 1
    assert BACKGROUND_SHARE / 4 < lines / singles < BACKGROUND_SHARE * 2


def done(service: Service) -> NDArray[np.float64]:
    """How many pictures of batches, and how many single ones, have been answered."""
    lines = service.counted("volo_batch_lines_total", outcome="ok")
    return np.array([lines, service.counted("volo_requests_total", endpoint="/predict", outcome="ok")])


def test_single_requests_hardly_notice_a_batch(service: Service) -> None:
    """Each finds at most one run in the background before it on the lane that it gets, and decoders that are shared."""
    enough = Event()
    with ThreadPoolExecutor(2) as threads:
        alone = threads.submit(latencies, service.url, enough)
        time.sleep(SPAN_S / 4)
        enough.set()
        alone_s = median(alone.result())
        batch = threads.submit(named, service.url, 1000)
        until(lambda: service.counted("volo_background_depth"))
        enough.clear()
        beside = threads.submit(latencies, service.url, enough)
        batch.add_done_callback(lambda _: enough.set())
        beside_s = median(beside.result())
        assert [line["status"] for line in batch.result()] == [200] * 1000
    print(f"median {alone_s:.4f} s alone, {beside_s:.4f} s beside a batch, {len(beside.result())} of them")
    assert beside_s < 10 * alone_s


def median(figures: list[float]) -> float:
    return float(np.median(figures))
