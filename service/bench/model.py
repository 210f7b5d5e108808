"""`volo bench model`: a model's forward by batch size and precision, against what the device can do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest

import numpy as np
import torch

from models.allocator import keep_freed_memory
from models.cost import multiply_adds
from models.graphs import Graph
from models.precision import Precision
from service.bench import machine, memory, report
from service.bench.contender import NoContender, timm_forward
from service.bench.forward import classifier, product
from service.bench.lanes import Lanes, compare
from service.bench.progress import Tell, shown
from service.bench.samples import percentile
from service.bench.timing import alternate
from service.device import DeviceMissing, resolve_device
from service.options import read_settings
from service.process import INTERRUPTED
from service.settings import Settings
from service.terminal import fail, print_table

_BATCHES = {"cpu": (1, 8, 32), "cuda": (1, 8, 32, 128)}


@dataclass(frozen=True)
class Row:
    """One batch size in one precision.

    Attributes:
        pictures_per_s: by the median run.
        matrix_share: of the multiply-adds a second of a big matrix product of the same precision, by rounds in turn.
        matrix_multiply_adds_per_s: of the fastest such product.
        memory_bytes: the most in use, above what was before the model was there. None on a CPU for all precisions
            but the first: the process keeps what it needed for that.
        versus: how many times as fast as the other implementation, if there is one.
    """

    model: str
    device: str
    precision: str
    batch: int
    pictures_per_s: float
    median_ms: float
    p99_ms: float
    matrix_share: float
    matrix_multiply_adds_per_s: float
    memory_bytes: int | None
    versus: float | None


def run(arguments: argparse.Namespace) -> int:
    """Measure as told; the exit status."""
    settings = read_settings(arguments)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    rows: list[Row] = []
    lanes: list[Lanes] = []
    status = 0
    try:
        with shown() as tell:
            _measure(arguments, settings, tell, rows, lanes)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (DeviceMissing, NoContender, OSError, ValueError) as error:
        fail(str(error), 1)
    if rows:
        _report(rows, lanes, arguments)
    return status or int(not rows)


def _measure(
    arguments: argparse.Namespace, settings: Settings, tell: Tell, rows: list[Row], lanes: list[Lanes]
) -> None:
    """Add what is measured to ``rows`` and ``lanes``, one precision after the other."""
    device = resolve_device(settings.device)
    if arguments.lanes and device.type != "cpu":
        raise ValueError("--lanes is for the CPU: elsewhere runs follow each other")
    batches = arguments.batch or _BATCHES[device.type]
    for precision in arguments.precisions or [settings.precision]:
        tell(f"{settings.model}, {precision}", 0.0)
        subject = _Subject(settings.model, device, precision, alone=not rows)
        rows += subject.rows(batches, arguments.versus == "timm", arguments.seconds, tell)
        if arguments.lanes:
            threads = torch.get_num_threads()
            lanes += [compare(subject.classifier, batch, threads, arguments.seconds) for batch in batches]


class _Subject:
    """A model on its device, in one precision."""

    def __init__(self, source: str, device: torch.device, precision: Precision, alone: bool) -> None:
        self._memory_known = alone or device.type != "cpu"
        _settle(device)
        self._empty_bytes = memory.used_bytes(device)
        self.classifier = classifier(source, device, precision)
        _settle(device)

    def rows(self, batches: Sequence[int], with_timm: bool, seconds: float, tell: Tell) -> list[Row]:
        """Time all batch sizes in turn, and beside them a matrix product and timm's model."""
        graphs = self._graphs(batches)
        rivals = [timm_forward(self.classifier, batch) for batch in graphs] if with_timm else []
        device = self.classifier.device
        reference, reference_adds = product(device, self.classifier.dtype)
        runs = [reference, *(graph.replay for graph, _ in graphs.values()), *rivals]
        matrix, *timings = alternate(runs, seconds, device, lambda part: tell(self.classifier.name, part))
        picture_adds = multiply_adds(self.classifier.model.config)
        ours, theirs = timings[: len(graphs)], timings[len(graphs) :]
        return [
            Row(
                model=self.classifier.name,
                device=str(device),
                precision=str(self.classifier.dtype).removeprefix("torch."),
                batch=batch,
                pictures_per_s=batch / timing.median_s,
                median_ms=timing.median_s * 1e3,
                p99_ms=percentile(np.array(timing.runs_s), 99) * 1e3,
                matrix_share=timing.against(matrix) * batch * picture_adds / reference_adds,
                matrix_multiply_adds_per_s=reference_adds / min(matrix.runs_s),
                memory_bytes=used - self._empty_bytes if self._memory_known else None,
                versus=timing.against(rival) if rival else None,
            )
            for (batch, (_, used)), timing, rival in zip_longest(graphs.items(), ours, theirs)
        ]

    def _graphs(self, batches: Sequence[int]) -> dict[int, tuple[Graph, int]]:
        """Each batch size's forward and the most memory that it needs, as far as there is memory."""
        graphs: dict[int, tuple[Graph, int]] = {}
        for batch in sorted(batches):
            try:
                graphs[batch] = self._graph(batch)
            except torch.OutOfMemoryError:
                report.warn(f"there is no memory for batches of {batch}")
                break
        return graphs

    def _graph(self, batch: int) -> tuple[Graph, int]:
        made: list[Graph] = []

        def first_runs() -> None:
            made.append(Graph(self.classifier, batch))
            made[0].replay()

        used = memory.peak_bytes(first_runs, self.classifier.device)
        return made[0], used


def _settle(device: torch.device) -> None:
    """Give back what loading has left, and keep what runs leave: as the engine does."""
    if device.type == "cpu":
        keep_freed_memory()


def _report(rows: Sequence[Row], lanes: Sequence[Lanes], arguments: argparse.Namespace) -> None:
    first = rows[0]
    print(f"{first.model} on {first.device}, {_threads()}\n{machine.summary()}\n")
    for precision, rate in {row.precision: row.matrix_multiply_adds_per_s for row in rows}.items():
        print(f"a matrix product in {precision}: {rate / 1e9:.4g} thousand million multiply-adds a second")
    print()
    titles = ("precision", "batch", "pictures/s", "ms", "p99 ms", "of matrix rate", "memory MB", "x timm")
    shown_titles = titles if arguments.versus else titles[:-1]
    cells = [
        (
            row.precision,
            str(row.batch),
            report.rate(row.pictures_per_s),
            report.milliseconds(row.median_ms),
            report.milliseconds(row.p99_ms),
            report.share(row.matrix_share),
            "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f}",
            *([f"{row.versus:.2f}"] if row.versus is not None else []),
        )
        for row in rows
    ]
    print_table(shown_titles, cells, right=set(titles[1:]))
    if lanes:
        _print_lanes(lanes)
    if arguments.json:
        settings = {"threads": torch.get_num_threads(), "seconds": arguments.seconds, "versus": arguments.versus}
        figures = {"rows": [asdict(row) for row in rows], "lanes": [asdict(each) for each in lanes]}
        report.write(arguments.json, "model", settings, figures)
    if arguments.plot:
        from service.bench import plot

        curves: dict[str, list[plot.Point]] = {}
        for row in rows:
            point = plot.Point(row.pictures_per_s, row.median_ms, str(row.batch))
            curves.setdefault(row.precision, []).append(point)
        plot.draw_model(arguments.plot, curves)


def _print_lanes(lanes: Sequence[Lanes]) -> None:
    threads = lanes[0].threads
    titles = ("batch", f"one run of {threads} threads, pictures/s", f"{threads} runs of one thread", "ratio")
    cells = [
        (str(each.batch), report.rate(each.one_run), report.rate(each.one_thread_runs), f"{each.ratio:.2f}")
        for each in lanes
    ]
    print()
    print_table(titles, cells, right=set(titles))


def _threads() -> str:
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)}"
