"""Told to stop at any moment, the service answers all that came before it was not ready, and leaves nothing behind."""

import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import pytest
from loading import PICTURES
from running import PATIENCE_S, Service, alive, serving, until


class Balancer:
    """Sends requests, by several callers at once, until the service says that it is not ready, as balancers do."""

    def __init__(self, service: Service) -> None:
        self.told: list[int | str] = []
        self._url = service.url
        self._ready = threading.Event()
        self._ready.set()
        self._threads = [threading.Thread(target=self._send, args=[number]) for number in range(8)]
        self._threads.append(threading.Thread(target=self._probe))
        for thread in self._threads:
            thread.start()

    def done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _probe(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while client.get(f"{self._url}/health/ready").status_code == 200:
                time.sleep(0.05)
        self._ready.clear()

    def _send(self, number: int) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            post = partial(httpx.post, timeout=PATIENCE_S) if number % 2 else client.post  # half keep their connection
            while self._ready.is_set():
                try:
                    answer = post(f"{self._url}/predict", content=PICTURES[number % len(PICTURES)])
                    self.told.append(answer.status_code)
                except httpx.TransportError as error:
                    self.told.append(repr(error))


@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_answered_whenever_it_is_told_to_stop(tmp_path: Path, seed: int) -> None:
    workers = str(1 + seed % 2)
    with serving(tmp_path, VOLO_WORKERS=workers, VOLO_GRACE_S="1") as service:
        until(service.is_ready)
        children = service.children
        balancer = Balancer(service)
        until(lambda: len(balancer.told) > 8)
        time.sleep(random.Random(seed).random())
        service.process.send_signal(signal.SIGTERM)
        until(balancer.done)
        assert service.process.wait(PATIENCE_S) == 0
        print(len(balancer.told), "answered")
        assert set(balancer.told) == {200}
    assert not any(alive(pid) for pid in children.values())
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("seed", range(5))
def test_it_stops_as_well_while_it_starts(tmp_path: Path, seed: int) -> None:
    with serving(tmp_path, VOLO_GRACE_S="0") as service:
        until(lambda: service.url)
        time.sleep(3 * random.Random(seed).random())
        children = service.children
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in service.text
    assert not any(alive(pid) for pid in children.values())
    assert list((tmp_path / "tmp").iterdir()) == []
