"""Where spans go: into memory, or to a collector, such as OpenTelemetry's, by OTLP over HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind


class Spans(InMemorySpanExporter):
    """Those that have ended, in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self))

    @property
    def request(self) -> ReadableSpan:
        """The only one that is of a request."""
        (request,) = [span for span in self.get_finished_spans() if span.kind is SpanKind.SERVER]
        return request

    @property
    def stages(self) -> list[ReadableSpan]:
        return [span for span in self.get_finished_spans() if span.kind is not SpanKind.SERVER]


class Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.paths: set[str] = set()
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def services(self) -> set[str]:
        """What those who sent call themselves."""
        told = [each for resource in self._resources for each in resource.resource.attributes]
        return {each.value.string_value for each in told if each.key == "service.name"}

    @property
    def spans(self) -> list[Span]:
        return [span for resource in self._resources for scope in resource.scope_spans for span in scope.spans]

    @property
    def _resources(self) -> list[ResourceSpans]:
        return [resource for request in self.requests for resource in request.resource_spans]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.add(self.path)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
