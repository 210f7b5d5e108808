"""The dashboard asks for what is exported, fits Grafana's provisioning, and can be checked and drawn."""

import json
import math
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from running import ROOT
from test_metrics import documented
from test_prometheus import RECORDED

sys.path.append(str(ROOT / "deploy/grafana"))

import check_dashboard
import dashboard
import picture

GRAFANA = ROOT / "deploy/grafana"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SPEC: dict[str, Any] = json.loads(dashboard.FILE.read_text())
VARIABLES = {variable["name"]: variable for variable in SPEC["templating"]["list"]}
PANELS = dashboard.panels("15s")
QUERIES = [query.expression for panel in PANELS for query in panel.queries]
ON_EVERY_SERIES = {"job", "instance"}


def asked_for() -> set[str]:
    """The metrics' names in all queries, of histograms without their endings."""
    names = {name for query in QUERIES for name in re.findall(r"\bvolo_\w+", query)}
    return {name if name in documented() else re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def test_the_dashboard_shows_every_metric_and_asks_for_no_other() -> None:
    assert asked_for() == set(documented())
    recorded = {name for query in QUERIES for name in re.findall(r"\bvolo:[\w:]+", query)}
    assert recorded <= {rule["record"] for rule in RECORDED}


@pytest.mark.parametrize("query", [query for query in QUERIES if "volo_" in query])
def test_a_query_uses_labels_that_its_metrics_have(query: str) -> None:
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bvolo_\w+", query)}
    has = {"le"}.union(ON_EVERY_SERIES, *(documented()[name][1] for name in names))
    grouped = {label for found in re.findall(r"by \(([^)]*)\)", query) for label in found.split(", ")}
    assert grouped | set(re.findall(r'(\w+)(?:=~|!=|=)"', query)) <= has


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_legend_names_labels_that_its_series_keep(panel: dashboard.Panel) -> None:
    for query in panel.queries:
        grouped = {label for found in re.findall(r"by \(([^)]*)\)", query.expression) for label in found.split(", ")}
        assert set(re.findall(r"{{(\w+)}}", query.legend)) <= grouped


def test_requests_and_errors_are_those_of_the_alerts() -> None:
    endpoints = {each for rule in RECORDED for each in re.findall(r'endpoint=~"([^"]*)"', rule["expr"])}
    assert VARIABLES["endpoint"]["allValue"] in endpoints


def test_panels_have_places_of_their_own_on_the_grid() -> None:
    assert len({panel.spec["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel.x >= 0 and panel.x + panel.width <= 24 for panel in PANELS)
    for one, other in combinations(PANELS, 2):
        beside = one.x + one.width <= other.x or other.x + other.width <= one.x
        above = one.y + one.height <= other.y or other.y + other.height <= one.y
        assert beside or above, (one.title, other.title)


def test_what_is_drawn_has_a_unit() -> None:
    assert all(panel.defaults["unit"] for panel in PANELS if panel.kind in ("stat", "timeseries"))


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/volo.yml").read_text())["providers"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in COMPOSE["services"]["grafana"]["volumes"]
    assert VARIABLES["datasource"]["current"] == {"text": source["name"], "value": source["uid"]}
    assert source["url"].removeprefix("http://").split(":")[0] in COMPOSE["services"]
    used = set(re.findall(r'"uid": "([^"]*)"', dashboard.FILE.read_text())) - {SPEC["uid"]}
    assert used == {"${datasource}"}


class Known:
    """A Prometheus that knows what it is told."""

    def __init__(self, points: dict[str, list[tuple[float, float]]]) -> None:
        self._points = points

    def series(self, query: dashboard.Query) -> list[picture.Series]:
        return [picture.Series("", {}, self._points[query.expression])] if query.expression in self._points else []


def test_a_query_without_a_number_is_missing_unless_it_is_about_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [("a panel", name) for name in ("full", "empty", "nan", "DCGM_FI_DEV_GPU_UTIL")]
    known = Known({"full": [(0.0, math.nan), (1.0, 0.0)], "nan": [(0.0, math.nan)]})
    assert check_dashboard.report(known, asked) == 2
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["data", "NONE", "NONE", "card", "4"]


def test_the_dashboard_can_be_drawn(tmp_path: Path) -> None:
    def data(query: dashboard.Query) -> list[picture.Series]:
        labels = {"model": "m", "device": "cpu", "version": "1"}
        bounds = ("1.0", "+Inf") if "_bucket" in query.expression and not query.legend.startswith("p") else ("1.0",)
        points = [(float(second), second % 7 / 7) for second in range(60)]
        return [picture.Series(query.legend, {**labels, "le": bound}, points) for bound in bounds]

    file = tmp_path / "dashboard.png"
    picture.draw(file, PANELS, data, data(dashboard.alerts()))
    with Image.open(file) as drawn:
        assert drawn.width > 1000
        assert len(drawn.convert("RGB").getcolors(1 << 20) or ()) > 50
