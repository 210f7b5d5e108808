"""A request is a span with its stages below it; whoever collects the spans, or does not, changes no request."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import httpx
import pytest
from calling import calling, chosen_settings, serving_engine
from collecting import Spans
from fakes import FakeDevice
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from running import CAT, ROOT, environment
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Message
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from service.accounting import Accounting
from service.app import create_app
from service.tracing import Traces, provider

PICTURE = CAT.read_bytes()
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@pytest.fixture
def spans() -> Spans:
    return Spans()


@asynccontextmanager
async def traced(spans: Spans, device: FakeDevice | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    chosen = chosen_settings(**settings)
    async with serving_engine(device) as engine:
        app = create_app(chosen, dict.fromkeys(chosen.sources, engine), traces=Traces(spans.provider))
        async with calling(app) as client:
            yield client


def told(answer: httpx.Response) -> str:
    """The traceparent of an answer, or nothing."""
    found = re.search(r'(?:^|, )traceparent;desc="([^"]*)"$', answer.headers["server-timing"])
    return found[1] if found else ""


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context(span: ReadableSpan) -> tuple[str, str]:
    assert span.context
    return format_trace_id(span.context.trace_id), format_span_id(span.context.span_id)


def period(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time
    assert span.end_time
    return span.start_time, span.end_time


async def test_a_request_is_a_span_and_its_stages_lie_in_it_one_after_the_other(spans: Spans) -> None:
    async with traced(spans) as client:
        answer = await client.post("/predict", content=PICTURE)
    assert [span.name for span in spans.stages] == ["receive", "decode", "queue", "device", "respond"]
    assert all(span.parent == spans.request.context for span in spans.stages)
    periods = [period(span) for span in spans.stages]
    whole_ns, rounding_ns = period(spans.request), 2_000  # the engine tells seconds in 32 bits
    assert whole_ns[0] - rounding_ns <= periods[0][0]
    assert periods[-1][0] <= whole_ns[1] + rounding_ns
    assert all(before[1] <= after[0] + rounding_ns for before, after in pairwise(periods))
    timings = answer.json()["timings_ms"]
    for span, (began_ns, ended_ns) in zip(spans.stages[:-1], periods, strict=False):
        assert (ended_ns - began_ns) / 1e6 == pytest.approx(timings[span.name], abs=0.002)


async def test_of_several_pictures_in_one_request_each_has_its_stages(spans: Spans) -> None:
    pixels = {"name": "image", "datatype": "UINT8", "shape": [3, 8, 8, 3], "data": [1] * 576}
    async with traced(spans) as client:
        answer = await client.post("/v2/models/embedded/infer", json={"inputs": [pixels]})
    assert answer.status_code == 200
    names = [span.name for span in spans.stages]
    assert {name: names.count(name) for name in names} == {
        "receive": 1,
        "decode": 3,
        "queue": 3,
        "device": 3,
        "respond": 1,
    }


async def test_a_request_is_described_in_the_words_of_the_semantic_conventions(spans: Spans) -> None:
    async with traced(spans) as client:
        await client.post("/predict?top_k=2", content=PICTURE, headers={"x-request-id": "abc"})
    assert spans.request.name == "POST /predict"
    assert spans.request.status.status_code is StatusCode.UNSET
    assert attributes(spans.request) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "server.address": "volo",
        "server.port": 80,
        "url.path": "/predict",
        "url.query": "top_k=2",
        "url.scheme": "http",
        "volo.model": "embedded",
        "volo.outcome": "ok",
        "volo.request_id": "abc",
    }


async def test_what_callers_make_up_names_no_span(spans: Spans) -> None:
    async with traced(spans) as client:
        await client.request("BREW", "/coffee")
    assert spans.request.name == "HTTP"
    assert attributes(spans.request)["http.request.method"] == "_OTHER"
    assert attributes(spans.request)["http.request.method_original"] == "BREW"
    assert "http.route" not in attributes(spans.request)


async def test_a_callers_trace_is_gone_on_with_and_the_answer_tells_the_span(spans: Spans) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "shop=1,bank=2"}
    async with traced(spans) as client:
        answer = await client.post("/predict", content=PICTURE, headers=headers)
    trace_id, span_id = context(spans.request)
    assert trace_id == TRACE
    assert spans.request.parent
    assert (format_span_id(spans.request.parent.span_id), spans.request.parent.is_remote) == (CALLER, True)
    assert spans.request.context
    assert dict(spans.request.context.trace_state) == {"shop": "1", "bank": "2"}
    assert told(answer) == f"00-{TRACE}-{span_id}-01"
    assert "total;dur=" in answer.headers["server-timing"]


async def test_what_the_caller_does_not_want_traced_is_not_and_the_answer_says_so(spans: Spans) -> None:
    async with traced(spans) as client:
        answer = await client.post("/predict", content=PICTURE, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert spans.get_finished_spans() == ()
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-00", told(answer))


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{CALLER}",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01-more",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01,00-{TRACE}-{CALLER}-01",
        "\xe9" * 600,
    ],
)
async def test_a_malformed_traceparent_is_as_none(spans: Spans, given: str) -> None:
    async with traced(spans) as client:
        answer = await client.get("/v2", headers=[(b"traceparent", given.encode("latin-1"))])
    assert answer.status_code == 200
    assert spans.request.parent is None
    trace_id, span_id = context(spans.request)
    assert trace_id != TRACE
    assert told(answer).startswith(f"00-{trace_id}-{span_id}-")


async def test_a_malformed_tracestate_is_dropped_alone(spans: Spans) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "shop=1,?"}
    async with traced(spans) as client:
        await client.get("/v2", headers=headers)
    assert context(spans.request)[0] == TRACE
    assert spans.request.context
    assert not spans.request.context.trace_state


async def test_the_log_of_a_request_has_its_trace_id_and_no_other_line_has(spans: Spans) -> None:
    with capture_logs([merge_contextvars]) as lines:
        async with traced(spans) as client:
            await client.get("/v2")
            await client.get("/health/live")
    logged = {line["endpoint"]: line.get("trace_id") for line in lines if line["event"] == "request"}
    assert logged == {"/v2": context(spans.request)[0], "/health/live": None}


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics", "/v2/health/ready", "/ping"])
async def test_what_is_asked_every_few_seconds_is_not_traced(spans: Spans, path: str) -> None:
    async with traced(spans) as client:
        answer = await client.get(path, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    assert answer.status_code == 200
    assert spans.get_finished_spans() == ()
    assert not told(answer)


async def test_what_is_the_callers_fault_is_no_error_and_what_is_ours_is(spans: Spans) -> None:
    device = FakeDevice()
    device.poison = set(range(256))
    async with traced(spans, device, api_keys="key") as client:
        await client.post("/predict", content=PICTURE)
        refused = spans.request
        spans.clear()
        await client.post("/predict", content=b"no picture", headers={"x-api-key": "key"})
        bad = spans.request
        spans.clear()
        await client.post("/predict", content=PICTURE, headers={"x-api-key": "key"})
        failed = spans.request
    assert (refused.status.status_code, attributes(refused)["http.response.status_code"]) == (StatusCode.UNSET, 401)
    assert (bad.status.status_code, attributes(bad)["volo.outcome"]) == (StatusCode.UNSET, "not_an_image")
    assert "error.type" not in attributes(bad)
    assert (failed.status.status_code, attributes(failed)["volo.outcome"]) == (StatusCode.ERROR, "inference_failed")
    assert [span.name for span in spans.stages] == ["receive", "decode", "respond"]


async def fine(request: Request) -> Response:
    return PlainTextResponse("fine")


async def broken(request: Request) -> Response:
    raise ZeroDivisionError


async def broken_midway(request: Request) -> Response:
    async def lines() -> AsyncIterator[str]:
        yield "first"
        raise ZeroDivisionError

    return StreamingResponse(lines())


async def cancelled(request: Request) -> Response:
    raise asyncio.CancelledError


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def taken(message: Message) -> None:
    pass


async def closed(message: Message) -> None:
    raise OSError


@pytest.mark.parametrize(
    ("endpoint", "send", "outcome", "status"),
    [
        (broken, taken, "internal_error", 500),
        (broken_midway, taken, "internal_error", 200),
        (fine, closed, "client_gone", 200),
        (cancelled, taken, "aborted", None),
    ],
)
async def test_a_request_that_comes_to_no_good_end_is_a_span_with_an_error_all_the_same(
    spans: Spans, endpoint: Any, send: Any, outcome: str, status: int | None
) -> None:
    traces = Traces(spans.provider)
    app = FastAPI(telemetry=traces.telemetry)
    app.add_route("/", endpoint)
    app.add_middleware(Accounting, apology=lambda _: PlainTextResponse("sorry", 500))
    traces.follow(app)
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "method": "GET", "path": "/"}
    with suppress(ZeroDivisionError, asyncio.CancelledError):
        await app({**scope, "query_string": b"", "headers": []}, nothing, send)
    assert attributes(spans.request)["volo.outcome"] == outcome
    assert attributes(spans.request)["error.type"]
    assert attributes(spans.request).get("http.response.status_code") == status
    assert spans.request.status.status_code is StatusCode.ERROR


async def test_a_disabled_sdk_leaves_everything_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with traced(Spans()) as client:
        assert not told(await client.get("/v2"))


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("OTEL_SERVICE_NAME", "", "volo"),
        ("OTEL_SERVICE_NAME", "shop", "shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop", "shop"),
    ],
)
def test_the_environment_may_call_the_service_something_else(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str
) -> None:
    monkeypatch.setenv(variable, value)
    made = provider()
    made.shutdown()
    assert made.resource.attributes["service.name"] == name


def test_what_is_off_is_not_even_imported() -> None:
    use = (
        "import sys; from service import worker; from service.app import create_app; app = create_app();"
        "ours = [each.cls.__name__ for each in app.user_middleware];"
        "print(ours, 'opentelemetry.sdk' in sys.modules, 'opentelemetry.exporter' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", use], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    assert run.stdout.strip() == "['Accounting', 'Bodies'] False False"
