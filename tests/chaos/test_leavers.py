"""Callers who leave, wherever their requests are: what they wanted is dropped, and nothing of it stays."""

import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from callers import blank, packed
from loading import CALLERS, PICTURES, ask, same
from running import Service, serving, until
from slow_device import LARGEST, served

LEAVERS = 1000
POOL = (os.cpu_count() or 1) + 4
"""Threads that Python starts for what would block its loop, one after the other and for good."""
GAUGES = ("volo_queue_depth", "volo_background_depth", "volo_pictures_in_run", "volo_slots_lent")
SETTINGS = {"VOLO_WORKERS": "1", "VOLO_TIMEOUT_S": "5"}
BATCH = packed(PICTURES[:3])
SLOW = blank(4000)
"""It takes long to decode."""


class Leaver:
    """A connection that is cut: half of them in the usual way, half of them torn."""

    def __init__(self, service: Service, dice: random.Random) -> None:
        url = httpx.URL(service.url)
        self.dice = dice
        self.connection = socket.create_connection((url.host, url.port or 80), timeout=30)
        if dice.random() < 0.5:  # to close it then is a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def send(self, body: bytes, much: float = 1.0, path: str = "/predict", kind: str = "image/jpeg") -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.connection.sendall(head.encode() + body[: int(len(body) * much)])

    def stay(self, longest_s: float) -> None:
        time.sleep(self.dice.random() * longest_s)


def in_the_head(leaver: Leaver) -> None:
    leaver.connection.sendall(b"POST /predict HTTP/1.1\r\nHos")


def after_the_head(leaver: Leaver) -> None:
    leaver.send(PICTURES[0], much=0)


def in_the_body(leaver: Leaver) -> None:
    leaver.send(PICTURES[0], much=0.5)


def while_it_is_decoded(leaver: Leaver) -> None:
    leaver.send(SLOW)
    leaver.stay(0.1)


def in_the_line_or_on_the_device(leaver: Leaver) -> None:
    leaver.send(PICTURES[1])
    leaver.stay(0.6)


def in_the_answer(leaver: Leaver) -> None:
    leaver.send(PICTURES[1], path="/predict?evidence=true&overlay=true&top_k=10")
    leaver.connection.recv(1)


def in_a_batch(leaver: Leaver) -> None:
    leaver.send(BATCH, 0.5, "/predict/batch", "application/zip")


def in_a_batchs_answer(leaver: Leaver) -> None:
    leaver.send(BATCH, 1.0, "/predict/batch", "application/zip")
    leaver.connection.recv(1)


def in_another_dialect(leaver: Leaver) -> None:
    leaver.send(PICTURES[2], path=leaver.dice.choice(["/embed", "/hf", "/predictions/embedded"]))
    leaver.stay(0.3)


STAGES: list[Callable[[Leaver], None]] = [
    in_the_head,
    after_the_head,
    in_the_body,
    while_it_is_decoded,
    in_the_line_or_on_the_device,
    in_the_answer,
    in_a_batch,
    in_a_batchs_answer,
    in_another_dialect,
]


def leave(service: Service, times: int, seed: int) -> None:
    """So many callers leave, at one stage after the other, as many at once as fill two runs."""

    def one(number: int) -> None:
        leaver = Leaver(service, random.Random(seed + number))
        with leaver.connection:
            STAGES[number % len(STAGES)](leaver)

    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(one, range(times)))


@dataclass
class Holding:
    """What a process holds."""

    files: int
    threads: int
    memory_bytes: int


def held(pid: int) -> Holding:
    status = Path(f"/proc/{pid}/status").read_text()
    threads, kilobytes = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("Threads", "VmRSS"))
    return Holding(len(list(Path(f"/proc/{pid}/fd").iterdir())), threads, kilobytes * 1024)


def is_quiet(service: Service) -> bool:
    """Nothing waits, nothing runs, no slot is lent, and the only request is the one that asks."""
    return service.counted("volo_requests_in_flight") == 1 and not any(map(service.counted, GAUGES))


def test_of_a_thousand_who_leave_at_every_stage_nothing_stays(tmp_path: Path) -> None:
    with served(tmp_path / "service", **SETTINGS) as service:
        until(service.is_ready)
        processes = {name: service.children[name] for name in ("volo: worker 0", "volo: engine embedded cpu")}
        right = ask(service, PICTURES[0]).json()["predictions"]
        leave(service, LEAVERS // 3, seed=0)  # so that every buffer has its size
        until(lambda: is_quiet(service))
        before = {name: held(pid) for name, pid in processes.items()}
        leave(service, LEAVERS, seed=LEAVERS)
        until(lambda: is_quiet(service))
        until(lambda: held(processes["volo: worker 0"]).files <= before["volo: worker 0"].files)
        after = {name: held(pid) for name, pid in processes.items()}
        computed = service.counted("volo_pictures_total")
        print(before, after, computed)
        assert computed < LEAVERS / 2  # of some 1,000 that they sent whole
        for name, now in after.items():
            assert now.files == before[name].files
            assert now.threads <= before[name].threads + POOL
            assert now.memory_bytes < before[name].memory_bytes + 30_000_000
        assert {name: service.children[name] for name in processes} == processes
        with ThreadPoolExecutor(3 * LARGEST) as threads:
            answers = list(threads.map(lambda _: ask(service, PICTURES[0]), range(3 * LARGEST)))
        assert all(same(answer.json()["predictions"], right) for answer in answers)
        assert not [line for line in service.log if line["level"] in ("error", "critical")]


def test_of_96_who_leave_the_line_none_is_computed(tmp_path: Path) -> None:
    """But for those whose run has begun before they leave."""
    with served(tmp_path / "service", 2.0, VOLO_WORKERS="1", VOLO_TIMEOUT_S="60") as service:
        until(service.is_ready)
        before = service.counted("volo_pictures_total")
        with ThreadPoolExecutor(LARGEST) as threads:
            staying = [threads.submit(ask, service, PICTURES[0]) for _ in range(LARGEST)]
            until(lambda: service.counted("volo_pictures_in_run"))
            leavers = [Leaver(service, random.Random(number)) for number in range(96)]
            for leaver in leavers:
                leaver.send(PICTURES[1])
            until(lambda: service.counted("volo_queue_depth") >= 96 - LARGEST)
            for leaver in leavers:
                leaver.connection.close()
            assert [answer.result().status_code for answer in staying] == [200] * LARGEST
        until(lambda: is_quiet(service))
        computed = service.counted("volo_pictures_total") - before - LARGEST
        print(f"{computed} of 96 were computed")
        assert computed <= 2 * LARGEST


def test_three_bad_pictures_among_48_fail_alone(tmp_path: Path) -> None:
    bad = {5: b"no picture", 17: PICTURES[0][:2000], 40: b"\0" * 50_000}
    with serving(tmp_path / "service") as service:
        until(service.is_ready)
        right = [ask(service, picture).json()["predictions"] for picture in PICTURES]
        ready = threading.Barrier(48)

        def send(number: int) -> httpx.Response:
            ready.wait(30)
            return ask(service, bad.get(number, PICTURES[number % len(PICTURES)]))

        with ThreadPoolExecutor(48) as threads:
            answers = list(threads.map(send, range(48)))
        assert {number for number, answer in enumerate(answers) if answer.status_code != 200} == bad.keys()
        assert all(answers[number].status_code in (415, 422) for number in bad)
        for number, answer in enumerate(answers):
            assert number in bad or same(answer.json()["predictions"], right[number % len(right)])
