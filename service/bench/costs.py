"""`volo bench costs`: what a model's runs cost by batch size, and a picture its HTTP worker: what `volo plan` needs."""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from os import getpid
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.allocator import keep_freed_memory
from models.classifier import Classifier
from service.bench import machine, overhead, pictures, report
from service.bench.client import Target
from service.bench.crew import Closed
from service.bench.figures import Figures
from service.bench.forward import classifier
from service.bench.progress import Tell, shown
from service.bench.stand import built
from service.bench.tables import CostTable, kept
from service.device import Device, DeviceFault, DeviceMissing, OutOfMemory, resolve_device
from service.options import read_settings
from service.settings import Settings, cores
from service.terminal import fail, print_table

_LEAST_RUNS = 20
_CALLERS = 4
"""Enough to keep one worker busy, and too few to keep it from its work."""
_PARTS = 20
"""Of the spread."""


@dataclass(frozen=True)
class Runs:
    """Seconds of each run of one size: one after the other, and as many at once as the device takes."""

    alone_s: Sequence[float]
    busy_s: Sequence[float]


def run(arguments: argparse.Namespace) -> int:
    """Measure as told; the exit status."""
    settings = read_settings(arguments)
    try:
        with shown() as tell:
            table = measure(settings, arguments.pictures, arguments.seconds, tell)
    except (DeviceMissing, DeviceFault, OutOfMemory, OSError, ValueError) as error:
        fail(str(error), 1)
    _print(table)
    file = arguments.out or kept(table.model)
    table.write(file)
    if not arguments.out:
        print(f"\nIt is kept in {file}, where `volo plan --model {settings.model}` finds it.")
    return 0


def measure(settings: Settings, folder: Path | None, seconds: float, tell: Tell) -> CostTable:
    """All costs, each batch size and the worker for about so many seconds.

    Raises:
        DeviceMissing, DeviceFault, OutOfMemory, OSError, ValueError: it cannot be done; the message says why.
    """
    bodies = pictures.read(folder)
    model = classifier(settings.model, resolve_device(settings.device), settings.precision)
    if model.device.type == "cpu":
        keep_freed_memory()
    device = Device(model, settings.max_batch, patience_s=settings.timeout_s / 4, cores=cores())
    runs = _measure_runs(device, list(device.warm_up(rounds=3)), model.image_size, seconds, tell)
    around = _measure_worker(model, bodies, seconds, tell)
    size = sum(map(len, bodies)) / len(bodies)
    described = machine.describe()
    return CostTable(
        model=model.name,
        precision=str(model.dtype).removeprefix("torch."),
        device="cuda" if device.padded else "cpu",
        machine=torch.cuda.get_device_name(model.device) if device.padded else machine.summary(),
        lanes=device.lanes,
        ahead=device.ahead,
        padded=device.padded,
        seconds_by_batch_size={size: statistics.median(each.busy_s) for size, each in runs.items()},
        alone_seconds_by_batch_size={size: statistics.median(each.alone_s) for size, each in runs.items()},
        alone_threads=device.threads_alone,
        spread=spread([each.busy_s for each in runs.values()]),
        worker_cpu_seconds_per_picture=around.server.cores["worker"] / around.answered,
        engine_cpu_seconds_per_picture=around.server.cores["engine"] / around.answered,
        pictures=f"{len(bodies)} of {size / 1e3:.0f} KB on average",
        measured_on=str(described["date"]),
        command=" ".join(["volo", *sys.argv[1:]]),
        versions=described["versions"],
    )


def spread(runs_s: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """What runs differ by: twenty means of all runs, each relative to its size's median, from fast to slow."""
    ratios = np.sort(np.concatenate([np.array(each) / statistics.median(each) for each in runs_s]))
    return tuple(round(float(part.mean()), 4) for part in np.array_split(ratios, min(_PARTS, len(ratios))))


def _measure_runs(device: Device, sizes: Sequence[int], side: int, seconds: float, tell: Tell) -> dict[int, Runs]:
    noise = np.random.default_rng(0).integers(0, 256, (max(sizes), side, side, 3), np.uint8)
    runs = {}
    for place, size in enumerate(sizes):
        tell(f"runs of {size}", place / len(sizes))
        batch = list(noise[:size])
        alone_s = [end_s - start_s for start_s, end_s in _timed(device, batch, seconds / 2, alone=True)]
        runs[size] = Runs(alone_s, _busy(device, batch, seconds / 2))
    return runs


def _busy(device: Device, batch: Sequence[NDArray[np.uint8]], seconds: float) -> list[float]:
    """Runs while there is always more to do: on each lane at once, or with others handed over ahead."""
    at_once = device.lanes + device.ahead
    together = threading.Barrier(at_once)

    def lane(_: int) -> list[tuple[float, float]]:
        together.wait()
        return _timed(device, batch, seconds)

    with ThreadPoolExecutor(at_once) as threads:
        times = sorted((pair for each in threads.map(lane, range(at_once)) for pair in each), key=lambda pair: pair[1])
    if not device.ahead:
        return [end_s - start_s for start_s, end_s in times]
    # a run that was handed over ahead began when the one before it ended
    return [end_s - max(start_s, before_s) for (_, before_s), (start_s, end_s) in pairwise(times)]


def _timed(
    device: Device, batch: Sequence[NDArray[np.uint8]], seconds: float, alone: bool = False
) -> list[tuple[float, float]]:
    """When each run began and ended, one after the other."""
    # on a processor by the thread's own time: who else is there is simulated, and not in the costs
    clock = time.perf_counter if device.padded else time.thread_time
    times: list[tuple[float, float]] = []
    stop_s = time.perf_counter() + seconds
    while len(times) < _LEAST_RUNS or time.perf_counter() < stop_s:
        start_s = clock()
        device.run(batch, len(batch), alone)
        times.append((start_s, clock()))
    return times


def _measure_worker(model: Classifier, bodies: Sequence[bytes], seconds: float, tell: Tell) -> Figures:
    """A worker's own work on these pictures, and the engine's, around a device that computes nothing."""
    card = overhead.nothing_card(model.image_size, len(model.labels))
    with overhead.serving(replace(card, crop_pct=model.crop_pct)) as url:
        target = Target(f"{url}/predict", bodies, {"Content-Type": "image/jpeg"}, b'"predictions"')
        with built(target, 1, seconds, 1.0, getpid(), tell) as stand:
            figures = stand.measure(Closed(_CALLERS))
    if not figures.answered:
        raise ValueError(f"the pictures could not be answered: {figures.errors}")
    return figures


def _print(table: CostTable) -> None:
    print(f"{table.model} in {table.precision} on {table.machine}; pictures: {table.pictures}\n")
    rows = [
        (
            str(size),
            report.milliseconds(seconds * 1e3),
            report.milliseconds(table.alone_seconds_by_batch_size[size] * 1e3),
            report.rate(table.lanes * size / seconds),
        )
        for size, seconds in table.seconds_by_batch_size.items()
    ]
    print_table(
        ("batch", "ms", "ms on an idle device", "pictures/s"),
        rows,
        right={"batch", "ms", "ms on an idle device", "pictures/s"},
    )
    worker_ms = table.worker_cpu_seconds_per_picture * 1e3
    engine_ms = table.engine_cpu_seconds_per_picture * 1e3
    print(
        f"\nA picture takes {worker_ms:.2f} ms of an HTTP worker, and {engine_ms:.2f} ms of the engine's own processor."
    )
