"""What our service says of itself on /metrics, between two readings."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

Readings = Mapping[tuple[str, str], float]
"""Values by the sample's name and its stage or endpoint, if it has one; of all models together."""

_WAIT_S = 10.0


def read(url: str) -> Readings:
    """The service's readings now, or none if what is at ``url`` is not ours."""
    parts = urlsplit(url)
    try:
        with urlopen(f"{parts.scheme}://{parts.netloc}/metrics", timeout=_WAIT_S) as reply:
            return parse(reply.read().decode())
    except (URLError, OSError, ValueError):
        return {}


def model(url: str) -> str:
    """What model runs where, as our service says it; empty if what is at ``url`` is not ours."""
    try:
        with urlopen(f"{url}/health", timeout=_WAIT_S) as reply:
            health = json.load(reply)
            return ", ".join(f"{model['name']} on {model['device']}" for model in health["models"])
    except (URLError, OSError, ValueError, TypeError, KeyError):
        return ""


def parse(text: str) -> Readings:
    """Our sums and counts in Prometheus' text format."""
    readings: dict[tuple[str, str], float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if family.name.startswith("volo_") and sample.name.endswith(("_sum", "_count", "_total")):
                readings[sample.name, sample.labels.get("stage") or sample.labels.get("endpoint", "")] += sample.value
    return readings


def mean_batch(before: Readings, after: Readings) -> float | None:
    """Pictures in a run between two readings; None if there was no run."""
    grown = _growth(before, after)
    runs = grown.get(("volo_batches_total", ""), 0.0)
    return grown[("volo_pictures_total", "")] / runs if runs else None


def stage_shares(before: Readings, after: Readings, path: str) -> dict[str, float]:
    """The share of each stage in the time that requests to ``path`` spent in the server, and of all the rest."""
    grown = _growth(before, after)
    total_s = grown.get(("volo_request_seconds_sum", path), 0.0)
    if not total_s:
        return {}
    stages = {stage: value / total_s for (name, stage), value in grown.items() if name == "volo_stage_seconds_sum"}
    return {**stages, "other": max(0.0, 1 - sum(stages.values()))}


def _growth(before: Readings, after: Readings) -> dict[tuple[str, str], float]:
    return {key: value - before.get(key, 0.0) for key, value in after.items()}
