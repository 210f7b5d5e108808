"""The dashboard as a picture: what Grafana would show of some minutes, drawn with matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dashboard import Panel, Query
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

COLUMN, LINE, GAP = 0.78, 0.38, 0.05
"""A place of the grid, which is 24 wide, and what is left free around a panel; in inches."""
DPI = 100
GROUND, PANEL, EDGE, TEXT, FAINT = "#111217", "#181b1f", "#2a2d34", "#d5d6de", "#8e9099"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#ffa6b0", "#96d98d")
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2"}


class Series(NamedTuple):
    """A curve: its name in the legend, its labels, and (seconds, value) of its points."""

    name: str
    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        return next((value for _, value in reversed(self.points) if value == value), math.nan)


Data = Callable[[Query], list[Series]]


def draw(file: Path, panels: Sequence[Panel], data: Data, alerts: Sequence[Series]) -> None:
    """Draw all panels but those about a card, which come last; ``alerts`` are marked where they begin to fire."""
    shown = [panel for panel in panels if not panel.of_the_card]
    while shown[-1].kind == "row":
        shown.pop()
    lines = max(panel.y + panel.height for panel in shown)
    figure = Figure(figsize=(24 * COLUMN, lines * LINE), facecolor=GROUND, dpi=DPI)
    for panel in shown:
        frame = Frame(figure, panel, lines)
        series = [each for query in panel.queries for each in data(query)]
        match panel.kind:
            case "row":
                frame.write(0.1, frame.height / 2, panel.title, size=12, weight="bold")
            case "stat":
                _stat(frame, series)
            case "table":
                _table(frame, series)
            case "heatmap":
                _heatmap(frame, series)
            case "timeseries":
                _curves(frame, series, alerts)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=GROUND)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


class Frame:
    """A panel's place in the figure; what is put in it is measured in inches from its left and lower edges."""

    def __init__(self, figure: Figure, panel: Panel, lines: int) -> None:
        self.panel = panel
        self.width, self.height = panel.width * COLUMN - 2 * GAP, panel.height * LINE - 2 * GAP
        self._figure = figure
        self._left, self._bottom = panel.x * COLUMN + GAP, (lines - panel.y - panel.height) * LINE + GAP
        if panel.kind != "row":
            corner, size = self._placed(0, 0), self._sized(self.width, self.height)
            ground = Rectangle(corner, *size, transform=figure.transFigure, facecolor=PANEL, edgecolor=EDGE, zorder=-1)
            figure.add_artist(ground)
            self.write(0.12, self.height - 0.2, panel.title, weight="bold")

    def write(self, x: float, y: float, text: str, *, size: float = 10, color: str = TEXT, **style: Any) -> None:
        self._figure.text(*self._placed(x, y), text, va="center", fontsize=size, color=color, **style)

    def axes(self, left: float, bottom: float, right: float, top: float) -> Axes:
        """Axes with these margins."""
        size = self._sized(self.width - left - right, self.height - bottom - top)
        return self._figure.add_axes((*self._placed(left, bottom), *size), facecolor="none")

    def _placed(self, x: float, y: float) -> tuple[float, float]:
        return self._sized(self._left + x, self._bottom + y)

    def _sized(self, width: float, height: float) -> tuple[float, float]:
        whole_width, whole_height = self._figure.get_size_inches()
        return width / whole_width, height / whole_height


def _stat(frame: Frame, series: Sequence[Series]) -> None:
    defaults = frame.panel.defaults
    value = min(each.last for each in series)
    steps = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    colour = NAMED[steps[-1]["color"]]
    words = {key: each["text"] for mapping in defaults.get("mappings", ()) for key, each in mapping["options"].items()}
    text = words.get(f"{value:g}") or told(value, defaults["unit"])
    frame.write(frame.width / 2, frame.height / 2, text, size=24, color=colour, ha="center", weight="bold")
    axes = frame.axes(0, 0, 0, frame.height * 0.72)
    axes.axis("off")
    for each in series:
        seconds, values = zip(*each.points, strict=True)
        axes.fill_between(seconds, values, color=colour, alpha=0.25, linewidth=0)
        axes.plot(seconds, values, color=colour, linewidth=1)
    axes.set(xlim=_ends(series), ylim=(0, None))


def _curves(frame: Frame, series: Sequence[Series], alerts: Sequence[Series]) -> None:
    defaults = frame.panel.defaults
    columns = max(1, min(len(series), int(frame.width / 1.25)))
    axes = _plot(frame, defaults["unit"], legend_lines=math.ceil(len(series) / columns))
    stacked = "stacking" in defaults["custom"]
    ground = np.zeros(0)
    for number, each in enumerate(series):
        seconds, values = (np.array(column) for column in zip(*each.points, strict=True))
        colour = COLOURS[number % len(COLOURS)]
        if stacked:
            seconds, values = _times(series), np.interp(_times(series), seconds, np.nan_to_num(values), 0, 0)
            ground = ground if len(ground) else np.zeros_like(values)
            axes.fill_between(seconds, ground, ground + values, color=colour, alpha=0.35, linewidth=0)
            ground = values = ground + values
        axes.plot(
            seconds, values, color=colour, linewidth=1.2, label=each.name, linestyle=_style(frame.panel, each.name)
        )
    for step in defaults.get("thresholds", {}).get("steps", ())[1:]:
        axes.axhline(step["value"], color=NAMED[step["color"]], linewidth=1, linestyle=(0, (6, 4)))
    for alert in alerts:
        axes.axvline(alert.points[0][0], color=NAMED["red"], linewidth=1, linestyle=(0, (2, 2)))
    axes.set(xlim=_ends(series), ylim=(0, defaults.get("max") or _top(series, axes)))
    look: dict[str, Any] = {"frameon": False, "fontsize": 7.5, "labelcolor": TEXT, "handlelength": 1.2, "borderpad": 0}
    below = axes.transAxes.inverted().transform(axes.transAxes.transform((0, 0)) - (0.5 * DPI, 0.25 * DPI))
    axes.legend(loc="upper left", bbox_to_anchor=below, ncols=columns, columnspacing=1.2, borderaxespad=0, **look)


def _heatmap(frame: Frame, series: Sequence[Series]) -> None:
    """Shades of how many fell into each bucket: the differences of what is counted up to each bound."""
    axes = _plot(frame, "", legend_lines=0)
    bounds = sorted(series, key=lambda each: float(each.labels["le"]))
    counted = np.array([[value for _, value in each.points] for each in bounds])
    shades = np.diff(counted, axis=0, prepend=0)
    seconds = [second for second, _ in bounds[0].points]
    used = np.flatnonzero(np.nansum(shades, axis=1) > 0)
    first, last = max(0, used[0] - 1), min(len(bounds) - 1, used[-1] + 1)
    rows = np.arange(first, last + 2)
    shades = np.where(shades > 0, shades, np.nan)[first : last + 1]
    axes.pcolormesh(_edges(seconds), rows, shades, cmap="viridis", shading="flat")
    unit = frame.panel.spec["options"]["yAxis"]["unit"]
    names = [told(float(each.labels["le"]), unit) for each in bounds]
    axes.set_yticks(rows[1:], names[first : last + 1])
    axes.grid(visible=False)


def _table(frame: Frame, series: Sequence[Series]) -> None:
    hidden = {"__name__", "job", "instance"}
    columns = [name for name in series[0].labels if name not in hidden]
    width = (frame.width - 0.24) / len(columns)
    for column, name in enumerate(columns):
        frame.write(0.12 + column * width, frame.height - 0.6, name, color=COLOURS[2])
        for row, each in enumerate(series):
            frame.write(0.12 + column * width, frame.height - 0.95 - 0.3 * row, each.labels[name])


def _plot(frame: Frame, unit: str, legend_lines: int) -> Axes:
    axes = frame.axes(0.68, 0.32 + 0.17 * legend_lines, 0.15, 0.42)
    axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(visible=True, color=EDGE, linewidth=0.7)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{int(second) // 60}:{int(second) % 60:02d}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[3, 6]))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, unit)))
    return axes


def _top(series: Sequence[Series], axes: Axes) -> float:
    return axes.get_ylim()[1] if any(value > 0 for each in series for _, value in each.points) else 1.0


def _style(panel: Panel, name: str) -> str:
    dashed = [each["matcher"]["options"] for each in panel.spec["fieldConfig"]["overrides"]]
    return "--" if any(pattern.strip("/") in name for pattern in dashed) else "-"


def _times(series: Sequence[Series]) -> NDArray[np.float64]:
    return np.unique([second for each in series for second, _ in each.points])


def _ends(series: Sequence[Series]) -> tuple[float, float]:
    times = _times(series)
    return times[0], times[-1]


def _edges(seconds: Sequence[float]) -> list[float]:
    """Where one point's column ends and the next begins."""
    middles = [(before + after) / 2 for before, after in pairwise(seconds)]
    return [seconds[0], *middles, seconds[-1]]


def told(value: float, unit: str) -> str:
    """A value with its unit, as Grafana writes it."""
    if math.isinf(value):
        return "more"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1e3:.3g} ms"
    base = 1024.0 if unit == "bytes" else 1000.0
    power = min(4, int(math.log(abs(value), base))) if abs(value) >= base else 0
    prefix = ("", "K", "M", "G", "T")[power]
    suffix = {"s": " s", "reqps": " req/s", "ops": "/s", "bytes": "iB" if power else " B", "decbytes": "B"}.get(
        unit, ""
    )
    return f"{value / base**power:.3g}{' ' * bool(power)}{prefix}{suffix}"
