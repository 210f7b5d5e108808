"""What is exported is what docs/metrics.md explains, with labels that no caller can make up."""

import asyncio
import re
from typing import get_args

import pytest
from calling import application, calling, serving_engine
from fakes import FakeDevice
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from running import CAT, ROOT

from service import metrics
from service.errors import Reason
from service.exposition import facts
from service.inference import Models
from service.link import Link
from service.settings import Settings

_ROW = re.compile(r"^\| `(volo_\w+)` \| (\w+) \| ([^|]*)\|", re.MULTILINE)


def documented() -> dict[str, tuple[str, set[str]]]:
    """Of each metric on the page, its kind and labels."""
    rows = _ROW.findall((ROOT / "docs/metrics.md").read_text())
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def exported() -> dict[str, tuple[str, set[str]]]:
    ours = [each for each in vars(metrics).values() if hasattr(each, "_labelnames")]
    counted = {
        metric._name + "_total" * (metric._type == "counter"): (metric._type, set(metric._labelnames))
        for metric in ours
    }
    models = Models({"cats": Link(1, None)}, Settings())  # type: ignore[arg-type]
    known = {family.name: ("gauge", set(family._labelnames)) for family in facts(models)}
    return {**counted, **known}


def test_the_page_has_every_metric_with_its_kind_and_labels_and_no_other() -> None:
    assert documented() == exported()


def test_every_reason_to_refuse_is_there_from_the_start_and_explained() -> None:
    Models({"dogs": Link(1, None)}, Settings())  # type: ignore[arg-type]
    metrics_page, tuning = ((ROOT / "docs" / page).read_text() for page in ("metrics.md", "operations.md"))
    for reason in get_args(Reason):
        for model in ("", "dogs"):
            assert REGISTRY.get_sample_value("volo_rejections_total", {"model": model, "reason": reason}) is not None
        assert f"(`{reason}`)" in metrics_page
        assert f'| 503 `overloaded`, `reason="{reason}"` |' in tuning


def test_the_buckets_fit_what_takes_a_millisecond_and_what_takes_ten_seconds() -> None:
    for histogram in (metrics.request_seconds, metrics.stage_seconds):
        first, *_, last, _ = histogram._upper_bounds
        assert (first, last) == (0.001, 10.0)


async def scraped() -> dict[str, list[Sample]]:
    """The samples after one picture, by family."""
    async with serving_engine() as engine, calling(application(engine)) as client:
        assert (await client.post("/predict", content=CAT.read_bytes())).status_code == 200
        text = (await client.get("/metrics")).text
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


async def test_a_picture_is_counted_by_size_and_format_and_by_how_sure_the_model_was() -> None:
    def read(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = read("volo_picture_formats_total", format="jpeg"), read("volo_top1_score_sum", model="embedded")
    in_bytes = read("volo_picture_bytes_sum")
    await scraped()
    assert read("volo_picture_formats_total", format="jpeg") == before[0] + 1
    assert read("volo_top1_score_sum", model="embedded") == pytest.approx(before[1] + 0.9, abs=1e-4)
    assert read("volo_picture_bytes_sum") == in_bytes + CAT.stat().st_size


async def test_what_runs_and_whether_it_is_ready_is_told_with_the_rest() -> None:
    families = await scraped()
    (ready,) = families["volo_model_ready"]
    assert (ready.labels, ready.value) == ({"model": "embedded"}, 1)
    (model,) = families["volo_model_info"]
    assert model.labels == {"model": "embedded", "device": "cpu", "image_size": "8"}
    (build,) = families["volo_build_info"]
    assert set(build.labels) == {"version", "python", "torch"}


async def test_a_model_whose_engine_is_not_there_is_not_ready_and_has_no_info() -> None:
    models = Models({"cats": Link(1, None)}, Settings())  # type: ignore[arg-type]
    _, info, ready = facts(models)
    assert [sample.value for sample in ready.samples] == [0]
    assert info.samples == []


async def test_no_request_is_in_flight_when_all_have_ended() -> None:
    device = FakeDevice()

    def in_flight() -> float:
        return REGISTRY.get_sample_value("volo_requests_in_flight") or 0.0

    async with serving_engine(device) as engine, calling(application(engine)) as client:
        device.gate.clear()
        request = asyncio.create_task(client.post("/predict", content=CAT.read_bytes()))
        await device.under_way()
        assert in_flight() == 1
        device.gate.set()
        await request
    assert in_flight() == 0
