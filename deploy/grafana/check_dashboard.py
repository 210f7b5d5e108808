"""Runs the dashboard's and the rules' queries against a Prometheus that scrapes the service under load, and draws it.

    .venv/bin/python deploy/grafana/check_dashboard.py --picture docs/images/dashboard.png

Each query must return data, but those for the exporter of a card, which is not there; the exit status says it too. It
starts the service and Prometheus itself: `prometheus` must be on the path, as Debian's package of that name puts it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import dashboard
import httpx
import picture
import traffic
import yaml

from service.bench import child

FOLDER = Path(__file__).parent.parent / "prometheus"
RATE_INTERVAL_S = 15
SCRAPE_S = 1
STEPS = 150
"""Points of a curve."""
SETTLE_S = 6.0
"""From the load's end until the rules have been evaluated once more."""
OPTIONS = ("--queue-limit", "32", "--timeout-s", "3", "--max-batch", "16", "--workers", "2", "--precision", "float32")
"""A service that is small enough to be overrun from the same machine."""


def main() -> int:
    arguments = _arguments()
    with (
        tempfile.TemporaryDirectory() as folder,
        child.serving(OPTIONS) as service,
        prometheus(Path(folder), service.url.removeprefix("http://")) as server,
    ):
        begin_s = time.time()
        asyncio.run(traffic.drive(service, arguments.seconds))
        time.sleep(SETTLE_S)
        span = Span(server, begin_s + RATE_INTERVAL_S, time.time())
        panels = dashboard.panels(f"{RATE_INTERVAL_S}s")
        missing = report(span, asked(panels, span.rules()))
        if arguments.picture:
            picture.draw(arguments.picture, panels, span.series, span.series(dashboard.alerts()))
    return 1 if missing else 0


class Known(Protocol):
    """Who answers queries."""

    def series(self, query: dashboard.Query) -> list[picture.Series]: ...


class Span:
    """What a Prometheus knows of some minutes."""

    def __init__(self, url: str, begin_s: float, end_s: float) -> None:
        self._url = url
        self._times = {"start": begin_s, "end": end_s, "step": (end_s - begin_s) / STEPS}

    def series(self, query: dashboard.Query) -> list[picture.Series]:
        """The query's series, named, with seconds since the beginning and values."""
        answer = self._get("query_range", {"query": query.expression, **self._times})
        return [
            picture.Series(
                query.name(each["metric"]),
                each["metric"],
                [(float(at) - self._times["start"], float(value)) for at, value in each["values"]],
            )
            for each in answer["result"]
        ]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def _get(self, what: str, parameters: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.get(f"{self._url}/api/v1/{what}", params=parameters, timeout=60).json()
        if answer["status"] != "success":
            raise ValueError(f"{parameters.get('query', what)}: {answer['error']}")
        return answer["data"]  # type: ignore[no-any-return]


def asked(panels: list[dashboard.Panel], rules: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """All queries, and where each is asked."""
    queries = [(f"panel {panel.title}", query.expression) for panel in panels for query in panel.queries]
    queries.append((dashboard.ALERTS, dashboard.alerts().expression))
    for rule in rules:
        expressions = _selectors(rule["query"]) if rule["type"] == "alerting" else [rule["name"]]
        queries += [(f"rule {rule['name']}", expression) for expression in expressions]
    return queries


def report(known: Known, queries: list[tuple[str, str]]) -> int:
    """Say of every query whether it returns data; how many should and do not."""
    missing = 0
    for where, expression in queries:
        card = "DCGM_" in expression
        found = _has_number(known.series(dashboard.Query(expression, "")))
        missing += not found and not card
        print(f"{'data' if found else 'card' if card else 'NONE':4}  {where}: {expression}")
    print(f"{len(queries)} queries, {missing} of which should return data and do not")
    return missing


def _has_number(series: list[picture.Series]) -> bool:
    return any(not math.isnan(value) for each in series for _, value in each.points)


def _selectors(expression: str) -> list[str]:
    """The series that an alert looks at: what it makes of them is empty while all is well."""
    return re.findall(r"\b(?:volo[\w:]+|up|DCGM_\w+)(?:{[^}]*})?", expression)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """One with our configuration and rules that scrapes the target; its address."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    config["rule_files"] = [str((FOLDER / pattern).resolve()) for pattern in config["rule_files"]]
    (ours,) = (each for each in config["scrape_configs"] if each["job_name"] == "volo")
    ours["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump({**config, "scrape_configs": [ours]}))
    address = f"127.0.0.1:{child.free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log)
    try:
        _wait_for(f"http://{address}/-/ready", process)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    sys.exit(f"prometheus ended with status {process.returncode}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="how long the load lasts (300)")
    parser.add_argument("--picture", type=Path, help="draw the dashboard into this PNG file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
