"""Ten times more load than the device has capacity for, for a minute."""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
from running import CAT, ROOT, Service, environment, peak_bytes, until
from slow_device import LARGEST, RUN_S, served

CAPACITY = LARGEST / RUN_S
TIMEOUT_S = 2.0


def loaded(service: Service, file: Path, *load: str) -> dict[str, Any]:
    """The figures of a load that the service's own generator makes."""
    bench = [sys.executable, "-m", "service", "bench", "serve", service.url, "--json", str(file), *load]
    subprocess.run(bench, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=300)
    (step,) = json.loads(file.read_text())["steps"]
    return dict(step)


@contextmanager
def refusals(service: Service) -> Iterator[list[float]]:
    """How long a caller who asks again and again waits to be told that it is refused, in seconds."""
    seconds: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=30) as caller:
            while not over.wait(0.1):
                answer = caller.post(f"{service.url}/predict", content=CAT.read_bytes())
                if answer.status_code == 503:
                    assert 1 <= int(answer.headers["Retry-After"]) <= 2 * TIMEOUT_S
                    seconds.append(answer.elapsed.total_seconds())

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield seconds
    finally:
        over.set()
        asking.join()


def asking(service: Service) -> HTTPConnection:
    """A connection on which a picture has been sent: little work for a crowd that asks at once."""
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/predict", CAT.read_bytes())
    return connection


def told(connection: HTTPConnection) -> tuple[int, int]:
    """The answer's status, and when to come back."""
    with closing(connection):
        answer = connection.getresponse()
        answer.read()
        return answer.status, int(answer.headers.get("Retry-After", 0))


def test_of_a_crowd_as_many_are_let_in_when_they_are_told_to_come_back_as_there_is_room_for_by_then(
    tmp_path: Path,
) -> None:
    """Each is told when there will be room, but not how many others are."""
    with served(tmp_path / "service", VOLO_TIMEOUT_S=str(TIMEOUT_S), VOLO_WORKERS="1") as service:
        until(service.is_ready)

        def insist(connection: HTTPConnection) -> tuple[int, ...]:
            first, again_in_s = told(connection)
            if first != 503:
                return (first,)
            time.sleep(again_in_s)
            return first, told(asking(service))[0]

        crowd = [asking(service) for _ in range(int(2 * CAPACITY * TIMEOUT_S))]
        with ThreadPoolExecutor(len(crowd)) as threads:
            answers = Counter(threads.map(insist, crowd))
    print(answers)
    refused = sum(count for statuses, count in answers.items() if statuses[0] == 503)
    assert refused > 10
    assert answers[503, 200] > 0.8 * min(refused, CAPACITY)  # of the second, at least, that they were away


def test_what_can_be_done_is_done_in_time_and_the_rest_is_refused_at_once(tmp_path: Path) -> None:
    with served(tmp_path / "service", VOLO_TIMEOUT_S=str(TIMEOUT_S), VOLO_WORKERS="1") as service:
        until(service.is_ready)
        # as many callers as fill its runs, each back as soon as it is answered
        most = loaded(service, tmp_path / "most.json", "--connections", str(2 * LARGEST), "--seconds", "15")["answered"]
        assert most > 0.8 * CAPACITY
        before = peak_bytes(service.children["volo: worker 0"])
        with refusals(service) as refused_s:
            over = loaded(service, tmp_path / "over.json", "--rates", str(10 * CAPACITY), "--seconds", "60")
        ended_s = time.monotonic()
        until(lambda: service.predict().status_code == 200)
        back_s = time.monotonic() - ended_s
        assert back_s < 2
        grown = peak_bytes(service.children["volo: worker 0"]) - before
        figures = {name: over[name] for name in ("offered", "answered", "p99_ms", "errors")}
        print(
            json.dumps({"most": most, **figures, "refused_s": statistics.quantiles(refused_s, n=100)[49::49]}),
            grown,
            back_s,
        )
        assert over["answered"] > 0.9 * most
        assert over["p99_ms"] < 1e3 * TIMEOUT_S
        assert over["errors"].pop("504 deadline_exceeded", 0) < 0.01 * 60 * most  # let in, and then too late
        assert set(over["errors"]) == {"503 overloaded"}
        assert statistics.median(refused_s) < 0.1
        assert grown < 100_000_000
