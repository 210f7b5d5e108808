"""Spans for OpenTelemetry: FastAPI's own for each request, and below it our stages. Imported only where wanted."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME, SERVICE_VERSION
from opentelemetry.trace import Span, Tracer, format_trace_id, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from service.accounting import Record

FLUSH_S = 2.0
"""How long the end of the service may wait for a collector to take the last spans."""

_TRACE_CONTEXT = TraceContextTextMapPropagator()


def provider() -> TracerProvider:
    """What sends spans to a collector, by OTLP over HTTP, as ``OTEL_…`` in the environment says."""
    ours = {SERVICE_NAME: "volo", SERVICE_VERSION: version("volo-serve")}
    resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces:
    """An application's spans: ``telemetry`` is for its making, and ``follow`` for when it has its routes."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._untraced: list[BaseRoute] = []
        self.telemetry: TelemetryConfig = {
            "tracer_provider": provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": self._is_untraced,
        }

    def follow(self, app: FastAPI) -> None:
        """Add stages to its requests' spans, leave out what is asked about its health, and send the last at its end.

        ``Accounting`` must be there already: what it finds out is told in the spans.
        """
        self._untraced += [route for route in app.routes if isinstance(route, APIRoute) and "health" in route.tags]
        app.add_middleware(Tracing, tracer=self._provider.get_tracer("volo", version("volo-serve")))
        lifespan = app.router.lifespan_context

        @asynccontextmanager
        async def flushed(app: FastAPI) -> AsyncIterator[Any]:
            try:
                async with lifespan(app) as state:
                    yield state
            finally:
                await self._flush()

        app.router.lifespan_context = flushed

    def _is_untraced(self, scope: MutableMapping[str, Any]) -> bool:
        return any(route.matches(scope)[0] is not Match.NONE for route in self._untraced)

    async def _flush(self) -> None:
        # in a thread that nobody has to wait for: the SDK would try for up to 30 s to reach a collector
        flush = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_S)


class Tracing:
    """ASGI middleware within a request's span and around ``Accounting``, whose record has what is to be told.

    Every line of the log that is about the request has its ``trace_id``.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = get_current_span()
        if scope["type"] != "http" or not span.get_span_context().is_valid:
            await self._app(scope, receive, send)
            return
        bound = bind_contextvars(trace_id=format_trace_id(span.get_span_context().trace_id))
        try:
            await self._app(scope, receive, _told(span, scope, send))
        finally:
            reset_contextvars(**bound)
            _describe(span, scope["state"]["record"])
            self._add_stages(span, scope["state"]["record"])

    def _add_stages(self, span: Span, record: Record) -> None:
        if not span.get_span_context().trace_flags.sampled:
            return
        context = set_span_in_context(span)
        to_epoch_ns = time.time_ns() - time.monotonic_ns()
        for name, began_s, seconds in record.timeline:
            began_ns = round(began_s * 1e9) + to_epoch_ns
            self._tracer.start_span(name, context, start_time=began_ns).end(began_ns + round(seconds * 1e9))


def _told(span: Span, scope: Scope, send: Send) -> Send:
    """``send``, but the answer tells the span, and the span what became of the request.

    No finished standard has a place for an answer's span. W3C's drafts began with a header ``traceresponse`` and went
    over to ``Server-Timing``, which browsers hand on to scripts; scripts that watch over pages look for ``traceparent``
    in it already.
    """
    carrier: dict[str, str] = {}
    _TRACE_CONTEXT.inject(carrier, set_span_in_context(span))
    header = b"server-timing", f'traceparent;desc="{carrier["traceparent"]}"'.encode()

    async def send_told(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], header]
        elif not message.get("more_body"):
            _describe(span, scope["state"]["record"])  # now, because with the last of the answer the span ends
        await send(message)

    return send_told


def _describe(span: Span, record: Record) -> None:
    if span.is_recording():
        told = {"volo.request_id": record.request_id, "volo.outcome": record.outcome, "volo.model": record.model}
        span.set_attributes({name: value for name, value in told.items() if value})
