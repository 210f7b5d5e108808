"""Callers that ask again and again, and remember all that they were told."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image
from running import PATIENCE_S, ROOT, Service

CALLERS = 16
PICTURES = [path.read_bytes() for path in sorted((ROOT / "models/data/samples").glob("*.jpg"))]


@dataclass
class Told:
    """One request's end: its picture's number, when it ended and after how long, and what came, if anything."""

    picture: int
    at_s: float
    took_s: float
    answer: httpx.Response | None


@dataclass
class Load:
    """Callers under way, and what they were told so far."""

    service: Service
    told: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.right = [ask(self.service, picture).json()["predictions"] for picture in PICTURES]
        self.answered_before = self.service.counted("volo_requests_total", endpoint="/predict", outcome="ok")
        self._over = threading.Event()

    @contextmanager
    def under_way(self, callers: int = CALLERS) -> Iterator[None]:
        """So many callers ask, each as soon as it has been answered."""
        threads = [threading.Thread(target=self._ask_on, args=[number]) for number in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads), "a request hangs"

    def statuses(self) -> dict[int | None, int]:
        """How many answers had which status; None is a connection that broke."""
        counted: dict[int | None, int] = {}
        for told in self.told:
            status = told.answer.status_code if told.answer else None
            counted[status] = counted.get(status, 0) + 1
        return counted

    def answered_since(self, at_s: float) -> int:
        """How many good answers have come since then."""
        return sum(told.at_s > at_s for told in self.good())

    def good(self) -> list[Told]:
        return [told for told in self.told if told.answer and told.answer.status_code == 200]

    def wrong(self) -> list[tuple[Any, Any]]:
        """What was answered beside what should have been, where these differ."""
        both = [(told.answer.json()["predictions"], self.right[told.picture]) for told in self.good() if told.answer]
        return [(got, right) for got, right in both if not same(got, right)]

    def _ask_on(self, number: int) -> None:
        with httpx.Client(base_url=self.service.url, timeout=PATIENCE_S, verify=False) as client:
            while not self._over.is_set():
                number = (number + 1) % len(PICTURES)
                started_s = time.monotonic()
                try:
                    answer = client.post("/predict", content=PICTURES[number])
                except httpx.TransportError:
                    answer = None
                ended_s = time.monotonic()
                self.told.append(Told(number, ended_s, ended_s - started_s, answer))
                if answer is None or answer.status_code != 200:
                    self._over.wait(0.1)  # who is refused does not come back at once


def ask(service: Service, picture: bytes) -> httpx.Response:
    """Have a picture named, over a connection of its own."""
    return httpx.post(f"{service.url}/predict", content=picture, timeout=PATIENCE_S)


def painted(colour: tuple[int, ...]) -> bytes:
    """A picture all of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def same(got: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    """Whether the labels are the same, and the scores but for rounding."""
    return all(
        one["label"] == other["label"] and abs(one["score"] - other["score"]) < 1e-4
        for one, other in zip(got, right, strict=True)
    )
