"""Tables for people, and JSON for their programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.bench import machine
from service.bench.figures import Figures
from service.terminal import print_table, saving


def print_load(steps: Sequence[Figures], head: str) -> None:
    """Each step's rates, latencies and errors; then what is known of where the time went."""
    print(f"{head}\n{machine.summary()}\n")
    if not steps:
        print("Nothing was measured.")
        return
    titles = ("load", "offered/s", "answered/s", "p50 ms", "p90", "p99", "p99.9", "max", "errors")
    print_table(titles, [_load_row(step) for step in steps], right=set(titles[1:-1]))
    _print_server(steps)
    _print_cores(steps)
    for step in steps:
        if step.doubt:
            warn(f"at {step.title} the load generator was the bottleneck: {step.doubt}; see --processes")


def _load_row(step: Figures) -> tuple[str, ...]:
    errors = ", ".join(f"{kind}: {count}" for kind, count in step.errors.items())
    latencies = (step.p50_ms, step.p90_ms, step.p99_ms, step.p99_9_ms, step.max_ms)
    return (step.title, rate(step.offered), rate(step.answered), *map(milliseconds, latencies), errors or "none")


def _print_server(steps: Sequence[Figures]) -> None:
    """The batches and the stages' shares of the time, where the server tells them."""
    stages = list(dict.fromkeys(stage for step in steps for stage in step.server.stages))
    if not stages:
        return
    print("\nWhere the time of a request goes, and the mean batch:")
    titles = ("load", *stages, "batch")
    rows = [
        (
            step.title,
            *(share(step.server.stages.get(stage)) for stage in stages),
            "" if step.server.mean_batch is None else f"{step.server.mean_batch:.1f}",
        )
        for step in steps
    ]
    print_table(titles, rows, right=set(titles[1:]))


def _print_cores(steps: Sequence[Figures]) -> None:
    """Who keeps how many processors busy."""
    names = list(dict.fromkeys(name for step in steps for name in step.server.cores))
    print("\nCores kept busy:")
    titles = ("load", *names, "load generator")
    rows = [
        (step.title, *(f"{step.server.cores.get(name, 0.0):.2f}" for name in names), f"{step.generator_cores:.2f}")
        for step in steps
    ]
    print_table(titles, rows, right=set(titles[1:]))


def write_load(file: Path, settings: Mapping[str, Any], steps: Sequence[Figures], highest: float | None) -> None:
    """All there is to know of a load, as JSON."""
    figures: dict[str, Any] = {"steps": [asdict(step) for step in steps]}
    if highest is not None:
        figures["highest_rate"] = highest
    write(file, "serve", settings, figures)


def write(file: Path, command: str, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Figures with what they were taken on, as JSON. NaN, the figure that could not be had, is null."""
    whole = {"command": f"bench {command}", **machine.describe(), "settings": dict(settings), **figures}
    with saving(file):
        file.write_text(json.dumps(_without_nan(whole), indent=1, default=str) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def warn(text: str) -> None:
    """Say something beside the figures."""
    print(f"volo: {text}", file=sys.stderr)


def rate(value: float) -> str:
    """A rate in three or four figures."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def milliseconds(value: float) -> str:
    """Three figures or more; a dash for what is not known."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(part: float | None) -> str:
    """Per cent; empty for what is not known."""
    return "" if part is None else f"{part:.1%}"
