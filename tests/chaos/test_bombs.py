"""Hostile pictures and archives, again and again: each gets its answer, and small pictures beside get theirs."""

import json
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from bombs import (
    DAMAGED,
    INTRICATE,
    LARGER,
    ONE_COLOUR,
    READ,
    avif_in_a_box,
    encoded,
    lying_zip,
    plain_zip,
    zip_of_folders,
)
from loading import PICTURES, ask, same
from PIL import Image
from running import PATIENCE_S, Service, peak_bytes, serving, until
from test_leavers import held, is_quiet

ROUNDS = 3


@contextmanager
def small_ones_beside(service: Service, taken_s: list[float]) -> Iterator[None]:
    """A small picture is asked for again and again, and each time answered as before."""
    right = ask(service, PICTURES[0]).json()["predictions"]
    over = threading.Event()

    def ask_on() -> None:
        with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
            while not over.wait(0.02):
                answer = client.post("/predict", content=PICTURES[0])
                assert same(answer.json()["predictions"], right)
                taken_s.append(answer.elapsed.total_seconds())

    with ThreadPoolExecutor(1) as thread:
        beside = thread.submit(ask_on)
        try:
            yield
        finally:
            over.set()
        beside.result()
    print(f"beside: {len(taken_s)}, {statistics.median(taken_s):.3f} s in the median, {max(taken_s):.3f} at worst")


def test_small_pictures_are_answered_while_hostile_ones_come(tmp_path: Path) -> None:
    larger = {name: make() for name, make in LARGER.items()}
    larger["an AVIF whose box is smaller than its frame"] = avif_in_a_box((12_500, 12_500), (64, 64))
    larger |= {f"{name} of one colour": make((10_000, 6_000)) for name, make in ONE_COLOUR.items()}
    long = {name: make() for name, make in READ.items()}
    bombs = {**{name: make() for name, make in {**INTRICATE, **DAMAGED}.items()}, **larger, **long}
    small_s: list[float] = []
    with serving(tmp_path / "service", VOLO_WORKERS="1") as service:
        until(service.is_ready)
        worker = service.children["volo: worker 0"]
        before = held(worker)
        started_s = time.monotonic()
        with small_ones_beside(service, small_s), ThreadPoolExecutor(2) as threads:
            names = list(bombs) * ROUNDS
            answers = list(zip(names, threads.map(lambda name: ask(service, bombs[name]), names), strict=True))
        until(lambda: is_quiet(service))
        after = held(worker)
        print(f"{len(answers)} in {time.monotonic() - started_s:.0f} s; {before} -> {after}")
        assert len(answers) == ROUNDS * len(bombs)
        for name, answer in answers:
            status = 200 if name in long else 413 if name in larger else 422
            assert answer.status_code == status, f"{name}: {answer.text}"
        assert statistics.median(small_s) < 0.5
        assert after.memory_bytes < before.memory_bytes + 300_000_000
        assert service.children["volo: worker 0"] == worker


LARGE = (13_300, 13_300)
"""A PNG of them has 515 KB, and other servers take 840 MB and 2 s for it."""


def at_once(service: Service, picture: bytes) -> list[int]:
    """What four callers are told."""
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ask(service, picture), range(4)))
    told = [(answer.status_code, round(answer.elapsed.total_seconds(), 2)) for answer in answers]
    print(f"{told}; peak {peak_bytes(service.children['volo: worker 0']) / 1e6:.0f} MB")
    return [answer.status_code for answer in answers]


@contextmanager
def no_more_memory(service: Service, than: int) -> Iterator[None]:
    """The worker does not take more beside what it has had."""
    worker = service.children["volo: worker 0"]
    peak = peak_bytes(worker)
    yield
    rise = peak_bytes(worker) - peak
    print(f"peak {peak / 1e6:.0f} + {rise / 1e6:.0f} MB")
    assert rise <= than
    assert service.children["volo: worker 0"] == worker


def test_a_huge_picture_of_one_colour_is_refused_by_its_header(tmp_path: Path) -> None:
    with serving(tmp_path / "service", VOLO_WORKERS="1") as service:
        until(service.is_ready)
        with no_more_memory(service, than=50_000_000):
            assert at_once(service, PICTURES[0]) == [200] * 4
            assert at_once(service, encoded(Image.new("RGB", LARGE), "PNG")) == [413] * 4
            assert at_once(service, encoded(Image.new("RGB", LARGE), "JPEG", progressive=True)) == [413] * 4


def test_huge_pictures_that_are_allowed_take_no_more_memory_than_there_may_be(tmp_path: Path) -> None:
    small_s: list[float] = []
    limits = {"VOLO_MAX_PIXELS": "180000000", "VOLO_DECODE_MEMORY": "1500000000", "VOLO_TIMEOUT_S": "60"}
    with serving(tmp_path / "service", VOLO_WORKERS="1", **limits) as service:
        until(service.is_ready)
        with small_ones_beside(service, small_s), no_more_memory(service, than=1_500_000_000):
            assert at_once(service, encoded(Image.new("RGB", LARGE), "PNG")) == [200] * 4
            assert at_once(service, encoded(Image.new("RGB", (10_000, 10_000)), "JPEG", progressive=True)) == [200] * 4
        assert statistics.median(small_s) < 0.5


def test_zips_that_unpack_to_far_more_than_they_have_take_little(tmp_path: Path) -> None:
    bombs = {
        "a zip that lies": (lying_zip(100), [422] * 100),
        "a zip that unpacks to 2.1 GB": (plain_zip(105, 20_000_001), [413] * 100),
        "a zip of 102,598 folders": (zip_of_folders(102_598), [413]),
    }
    small_s: list[float] = []
    with serving(tmp_path / "service", VOLO_WORKERS="1") as service:
        until(service.is_ready)
        with small_ones_beside(service, small_s), no_more_memory(service, than=150_000_000):
            for name, (bomb, statuses) in bombs.items():
                kind = {"Content-Type": "application/zip"}
                answer = httpx.post(f"{service.url}/predict/batch", content=bomb, headers=kind, timeout=PATIENCE_S)
                told = [json.loads(line)["status"] for line in answer.text.splitlines()]
                print(f"{name}, {len(bomb):,} bytes: {len(told)} lines in {answer.elapsed.total_seconds():.1f} s")
                assert told == statuses
        assert statistics.median(small_s) < 0.5
