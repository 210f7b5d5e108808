"""`volo bench overhead`: what the service itself costs, around a device that computes nothing."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from setproctitle import setproctitle

from models.labels import Label
from service import logs
from service.bench import machine, report
from service.bench.client import Target
from service.bench.crew import Closed
from service.bench.figures import Figures
from service.bench.progress import shown
from service.bench.stand import built
from service.bench.tables import CostTable
from service.outputs import Outputs, Wants
from service.settings import Settings
from service.terminal import print_table
from service.wire import ModelCard

_OURS = ("worker", "engine")
QUEUE_LIMIT = 1024
_LARGEST = 64
_COST_S = 1e-4
_START_S = 120.0
_POLL_S = 0.05


class Nothing:
    """A device that says the same of every picture, at once."""

    def __init__(self, classes: int) -> None:
        self._logits = np.random.default_rng(0).standard_normal(classes).astype(np.float32)

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, alone: bool, wants: Wants) -> Outputs:
        """The same logits for each; nothing else is asked of it."""
        return Outputs(np.broadcast_to(self._logits, (len(pictures), self._logits.size)))

    def probe(self) -> None:
        """It is well."""

    def memory(self) -> tuple[int, int]:
        """It has none."""
        return 0, 0


class Paced(Nothing):
    """The same, after as long as a run takes by a table of costs: it sleeps, and leaves the processor to others."""

    def __init__(self, classes: int, costs: CostTable) -> None:
        super().__init__(classes)
        self._seconds = costs.costs()
        self._lanes = threading.Semaphore(costs.lanes)

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, alone: bool, wants: Wants) -> Outputs:
        """Sleep when a lane is free, and then the same logits for each."""
        with self._lanes:
            time.sleep(self._seconds.seconds(padded_size))
        return super().run(pictures, padded_size, alone, wants)


def run(arguments: argparse.Namespace) -> int:
    """Measure as told; the exit status."""
    picture = cropped(arguments.image_size)
    with serving(nothing_card(arguments.image_size, arguments.classes)) as url, shown() as tell:
        target = Target(f"{url}/predict", [picture], {"Content-Type": "image/bmp"}, b'"predictions"')
        with built(target, 1, arguments.seconds, arguments.warm_up, os.getpid(), tell) as stand:
            for count in arguments.connections:
                stand.measure(Closed(count))
    steps = [_of_ours(step) for step in stand.steps]
    print(f"BMP pictures of {len(picture) / 1e3:.0f} KB, {arguments.classes} classes\n{machine.summary()}\n")
    _print(steps)
    if arguments.json:
        report.write_load(arguments.json, {"image_size": arguments.image_size}, steps, None)
    return 0


def nothing_card(image_size: int, classes: int) -> ModelCard:
    """What the device that computes nothing serves."""
    labels = tuple(Label(f"class {index}") for index in range(classes))
    return ModelCard("nothing", "cpu", image_size, 1.0, grid_size=1, feature_size=1, labels=labels)


def cropped(image_size: int) -> bytes:
    """A picture that needs no decoding to speak of, and no crop: noise, as a BMP of just the model's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


@contextmanager
def serving(card: ModelCard, pace: CostTable | None = None) -> Iterator[str]:
    """The address of one HTTP worker and one engine, processes as ``volo serve`` has them.

    The device computes nothing; with a ``pace`` that takes as long as the table says.
    """
    with (
        tempfile.TemporaryDirectory(prefix="volo-") as folder,
        socket.socket(socket.AF_UNIX) as inner,
        socket.create_server(("127.0.0.1", 0), backlog=2048) as outer,
    ):
        path = Path(folder) / "engine.sock"
        inner.bind(str(path))
        inner.listen()
        url = f"http://127.0.0.1:{outer.getsockname()[1]}"
        with _process(_engine, inner, card, pace), _process(_worker, outer, str(path)):
            _await(f"{url}/health/ready")
            yield url


@contextmanager
def _process(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    process = get_context("spawn").Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _engine(listener: socket.socket, card: ModelCard, pace: CostTable | None) -> None:
    from service.batching import Queue  # here, because HTTP workers do without torch
    from service.costs import Costs
    from service.engine import Engine
    from service.engine_process import run

    setproctitle("volo: engine")
    logs.configure("warning", "auto", "engine")
    classes = len(card.labels)
    if pace:
        engine = Engine(Paced(classes, pace), card, Queue(QUEUE_LIMIT, pace.costs(), pace.lanes, pace.ahead))
    else:
        costs = Costs({2**step: _COST_S for step in range(_LARGEST.bit_length())}, padded=False)
        engine = Engine(Nothing(classes), card, Queue(QUEUE_LIMIT, costs))
    run(engine, listener, patience_s=1.0)


def _worker(listener: socket.socket, engine: str) -> None:
    from service import worker

    setproctitle("volo: worker")
    # all is as it is by default, but for where it goes: each request is logged, and a supervisor hears signs of life
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logs.configure("info", "json", "worker 0")
    settings = Settings(workers=1, grace_s=0.0)
    worker.main(
        {
            "settings": settings.model_dump(mode="json"),
            "engines": {settings.model: engine},
            "control": "",
            "rate_memory": 0,
            "listener": listener.detach(),
            "number": 0,
            "url": "",
        }
    )


def _await(url: str) -> None:
    """Raise TimeoutError if it does not answer 200 before long."""
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        try:
            with urlopen(url, timeout=_START_S):
                return
        except (URLError, OSError):  # it is not there yet, or says 503
            time.sleep(_POLL_S)
    raise TimeoutError(url)


def _of_ours(step: Figures) -> Figures:
    cores = {name: step.server.cores.get(name, 0.0) for name in _OURS}
    return replace(step, server=replace(step.server, cores=cores))


def _print(steps: Sequence[Figures]) -> None:
    titles = ("load", "answered/s", "p50 ms", "p99 ms", *(f"{name} us" for name in _OURS), "generator us", "batch")
    rows = []
    for step in steps:
        used = [*(step.server.cores[name] for name in _OURS), step.generator_cores]
        rows.append(
            (
                step.title,
                report.rate(step.answered),
                *map(report.milliseconds, (step.p50_ms, step.p99_ms)),
                *(f"{cores / step.answered * 1e6:.0f}" if step.answered else "-" for cores in used),
                "" if step.server.mean_batch is None else f"{step.server.mean_batch:.1f}",
            )
        )
    print_table(titles, rows, right=set(titles[1:]))
