"""The dashboard's panels and queries, read from its JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "dashboards/volo.json"
ALERTS = "Alerts"
"""The name of the annotations that say when which alert was firing."""


class Query(NamedTuple):
    """An expression in PromQL, and how each of its series is named: with ``{{label}}`` for a label's value."""

    expression: str
    legend: str

    def name(self, labels: dict[str, str]) -> str:
        return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), self.legend)


class Panel(NamedTuple):
    """A panel, where it lies on a grid 24 wide, and what is drawn on it. ``spec`` is its JSON."""

    kind: str
    title: str
    x: int
    y: int
    width: int
    height: int
    queries: list[Query]
    spec: dict[str, Any]

    @property
    def defaults(self) -> dict[str, Any]:
        """What holds of all its fields: unit, limits, thresholds, style."""
        return self.spec.get("fieldConfig", {}).get("defaults", {})  # type: ignore[no-any-return]

    @property
    def of_the_card(self) -> bool:
        """Whether it shows what NVIDIA's exporter says, which there is only where there is a card."""
        return any("DCGM_" in query.expression for query in self.queries)


def panels(rate_interval: str) -> list[Panel]:
    """All panels, with every variable set to all, and rates over so long."""
    dashboard = json.loads(FILE.read_text())
    values = {"__rate_interval": rate_interval}
    values |= {each["name"]: each["allValue"] for each in dashboard["templating"]["list"] if "allValue" in each}
    return [_panel(spec, values) for spec in dashboard["panels"]]


def alerts() -> Query:
    """The annotations' query."""
    (found,) = (each for each in json.loads(FILE.read_text())["annotations"]["list"] if each["name"] == ALERTS)
    return Query(found["expr"], found["titleFormat"])


def _panel(spec: dict[str, Any], values: dict[str, str]) -> Panel:
    queries = [
        Query(re.sub(r"\$(\w+)", lambda found: values[found[1]], target["expr"]), target.get("legendFormat", ""))
        for target in spec.get("targets", ())
    ]
    place = spec["gridPos"]
    return Panel(spec["type"], spec["title"], place["x"], place["y"], place["w"], place["h"], queries, spec)
