"""Throughput against latency, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from service.bench import machine
from service.bench.figures import Figures
from service.terminal import saving


class Point(NamedTuple):
    """A measured point of a curve."""

    rate: float
    milliseconds: float
    label: str


def draw_load(file: Path, steps: Sequence[Figures], slo_ms: float | None) -> None:
    """Curves of the closed loops and of the open ones; p50 drawn out, p99 dashed."""
    figure, axes = _empty("requests answered a second")
    for load, colour in (("closed", "tab:blue"), ("open", "tab:orange")):
        chosen = sorted((step for step in steps if step.load == load), key=lambda step: step.value)
        if chosen:
            medians = [Point(step.answered, step.p50_ms, f"{step.value:.3g}") for step in chosen]
            _curve(axes, medians, f"{load} loop, p50", "o-", colour)
            _curve(axes, [Point(s.answered, s.p99_ms, "") for s in chosen], f"{load} loop, p99", "s--", colour)
    if slo_ms is not None:
        axes.axhline(slo_ms, color="grey", linewidth=1, linestyle=":", label=f"{slo_ms:g} ms")
    _save(figure, axes, file)


def draw_model(file: Path, curves: dict[str, list[Point]]) -> None:
    """A curve for every precision, with the batch sizes beside its points."""
    figure, axes = _empty("pictures a second")
    for name, points in curves.items():
        _curve(axes, points, name, "o-", None)
    _save(figure, axes, file)


def _empty(unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=unit, ylabel="latency, ms", yscale="log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(StrMethodFormatter("{x:g}"))
    axes.grid(visible=True, which="both", alpha=0.2)
    return figure, axes


def _curve(axes: Axes, points: Sequence[Point], label: str, style: str, colour: str | None) -> None:
    rates, latencies = [point.rate for point in points], [point.milliseconds for point in points]
    axes.plot(rates, latencies, style, label=label, color=colour)
    for point in points:
        axes.annotate(
            point.label, (point.rate, point.milliseconds), textcoords="offset points", xytext=(4, -10), fontsize=8
        )


def _save(figure: Figure, axes: Axes, file: Path) -> None:
    axes.set_xlim(left=0)
    axes.set_title(machine.summary(), fontsize=9)
    axes.legend()
    with saving(file):
        figure.savefig(file)
