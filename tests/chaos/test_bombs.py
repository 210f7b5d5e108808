"""Hostile pictures and archives, again and again: each gets its answer, and small pictures beside get theirs."""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from bombs import DAMAGED, INTRICATE, LARGER, READ, avif_in_a_box
from loading import PICTURES, ask, same
from running import PATIENCE_S, serving, until
from test_leavers import held, is_quiet

ROUNDS = 3


def test_small_pictures_are_answered_while_hostile_ones_come(tmp_path: Path) -> None:
    larger = {name: make() for name, make in LARGER.items()}
    larger["an AVIF whose box is smaller than its frame"] = avif_in_a_box((12_500, 12_500), (64, 64))
    bombs = {**{name: make() for name, make in {**INTRICATE, **DAMAGED}.items()}, **larger}
    long = {name: make() for name, make in READ.items()}
    small_s: list[float] = []
    over = threading.Event()
    with serving(tmp_path / "service", VOLO_WORKERS="1") as service:
        until(service.is_ready)
        worker = service.children["volo: worker 0"]
        right = ask(service, PICTURES[0]).json()["predictions"]
        before = held(worker)

        def small() -> None:
            with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
                while not over.wait(0.02):
                    answer = client.post("/predict", content=PICTURES[0])
                    assert same(answer.json()["predictions"], right)
                    small_s.append(answer.elapsed.total_seconds())

        with ThreadPoolExecutor(3) as threads:
            beside = threads.submit(small)
            started_s = time.monotonic()
            answers = dict(
                zip(
                    [*bombs, *long] * ROUNDS,
                    threads.map(lambda bomb: ask(service, bomb), [*bombs.values(), *long.values()] * ROUNDS),
                    strict=True,
                )
            )
            took_s = time.monotonic() - started_s
            over.set()
            beside.result()
        until(lambda: is_quiet(service))
        after = held(worker)
        print(
            f"{ROUNDS * len(answers)} in {took_s:.0f} s; beside: {len(small_s)}, {statistics.median(small_s):.3f} s in"
        )
        print(f"the median, {max(small_s):.3f} at worst; {before} -> {after}")
        for name, answer in answers.items():
            status = 200 if name in long else 413 if name in larger else 422
            assert answer.status_code == status, f"{name}: {answer.text}"
        assert statistics.median(small_s) < 0.5
        assert after.memory_bytes < before.memory_bytes + 300_000_000
        assert service.children["volo: worker 0"] == worker
