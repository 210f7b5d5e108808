"""Callers of every sort: good and bad, slow, huge, in bulk, and such as leave; each knows what it may be told."""

from __future__ import annotations

import io
import itertools
import random
import socket
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
from loading import PICTURES, same
from PIL import Image
from running import Service

BULK = 20
GONE = "gone"
"""What a caller notes that has left."""
Ask = Callable[["Caller"], str]


def converted(picture: bytes, kind: str) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(file, kind)
    return file.getvalue()


def packed(pictures: list[bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(str(number), picture)
    return file.getvalue()


def blank(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    return file.getvalue()


GOOD = [*PICTURES, *(converted(picture, kind) for picture in PICTURES[:2] for kind in ("PNG", "WEBP"))]
BAD = [b"no picture", PICTURES[0][:2000], b"\0" * 100_000, blank(8000), b"x" * 21_000_000]


@dataclass
class Ledger:
    """What all callers were told, by outcome, and what was not as it should be."""

    told: Counter[str] = field(default_factory=Counter)
    by_id: dict[str, str] = field(default_factory=dict)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, request_id: str, outcome: str) -> None:
        with self.lock:
            self.told[outcome] += 1
            self.by_id[request_id] = outcome
            self.timeline.append((time.monotonic(), outcome))


class Caller:
    """One that asks now and then, in one of the ways of ``WAYS``, until it is told to stop."""

    def __init__(self, service: Service, ledger: Ledger, right: list[object], pause_s: float, seed: int) -> None:
        self._service = service
        self._ledger = ledger
        self._right = right
        self._pause_s = pause_s
        self._ids = (f"caller-{seed}-{number}" for number in itertools.count())
        self.id = ""
        self.dice = random.Random(seed)
        self.client = httpx.Client(base_url=service.url, timeout=60)

    def ask_on(self, over: threading.Event) -> None:
        ways, weights = zip(*WAYS.items(), strict=True)
        while not over.wait(self.dice.expovariate(1 / self._pause_s)):
            (way,) = self.dice.choices(ways, weights)
            self.id = self.client.headers["X-Request-ID"] = next(self._ids)
            try:
                outcome = way(self)
            except Exception as error:  # whatever it is, it was not promised, and this caller shall go on
                outcome = "broken"
                self._ledger.wrong.append(f"{way.__name__}: {error!r}")
            if outcome:
                self._ledger.note(self.id, outcome)
        self.client.close()

    def good(self) -> str:
        number = self.dice.randrange(len(GOOD))
        answer = self.client.post("/predict", content=GOOD[number])
        if answer.status_code == 200 and not same(answer.json()["predictions"], self._right[number]):  # type: ignore[arg-type]
            self._ledger.wrong.append(f"picture {number} is said to be {answer.text}")
        return outcome(answer)

    def bad(self) -> str:
        answer = self.client.post("/predict", content=self.dice.choice(BAD))
        if answer.status_code < 400 or answer.status_code == 500:
            self._ledger.wrong.append(f"a bad picture was answered {answer.status_code}")
        return outcome(answer)

    def lost(self) -> str:
        return outcome(self.client.get(f"/nowhere/{self.dice.random()}"))

    def impatient(self) -> str:
        headers = {"X-Request-Timeout-Ms": str(self.dice.randrange(1, 60))}
        return outcome(self.client.post("/predict", content=self.dice.choice(GOOD), headers=headers))

    def bulk(self) -> str:
        body = packed([self.dice.choice(GOOD) for _ in range(BULK)])
        answer = self.client.post("/predict/batch", content=body, headers={"Content-Type": "application/zip"})
        if answer.status_code == 200 and len(answer.text.splitlines()) != BULK:
            self._ledger.wrong.append(f"{BULK} pictures have {len(answer.text.splitlines())} lines")
        return outcome(answer)

    def slow(self) -> str:
        picture = self.dice.choice(GOOD)

        def trickle() -> Iterator[bytes]:
            for start in range(0, len(picture), 4096):
                time.sleep(0.02)
                yield picture[start : start + 4096]

        return outcome(self.client.post("/predict", content=trickle()))

    def leaving(self) -> str:
        """Somewhere between the first byte and the answer."""
        url = httpx.URL(self._service.url)
        picture = self.dice.choice(GOOD)
        named = (
            f"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: {self.id}\r\nContent-Length: {len(picture)}\r\n\r\n"
        )
        head = named.encode()
        with socket.create_connection((url.host, url.port or 80)) as connection:
            sent = (head + picture)[: self.dice.choice([40, len(head), len(head) + 1000, len(head) + len(picture)])]
            connection.sendall(sent)
            time.sleep(self.dice.random() * 0.03)
        return GONE if len(sent) >= len(head) else ""  # half a head is no request


WAYS: dict[Ask, int] = {
    Caller.good: 60,
    Caller.bad: 8,
    Caller.lost: 2,
    Caller.impatient: 6,
    Caller.bulk: 2,
    Caller.slow: 4,
    Caller.leaving: 18,
}


def outcome(answer: httpx.Response) -> str:
    """As the service counts it."""
    if answer.status_code == 200:
        return "ok"
    return str(answer.json()["code"])
