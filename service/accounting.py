"""Every request ends in one counted outcome, with an id, its stages' times and a line in the log."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.logs import logger

_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}")


class Record:
    """What is known of one request. ``stages`` are seconds by name, ``outcome`` is ok or an error's code."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrival_s = time.monotonic()
        self.outcome = "ok"
        self.stages: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.arrival_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, however it ends."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = time.monotonic() - started_s

    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by stage, and so far in all."""
        return {name: round(seconds * 1e3, 3) for name, seconds in [*self.stages.items(), ("total", self.elapsed_s)]}


class Accounting:
    """ASGI middleware around everything else; hands each request's record on as ``request.state.record``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(Headers(scope=scope).get("x-request-id", "")))
        scope.setdefault("state", {})["record"] = record

        async def send_signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = record.request_id
                headers["Server-Timing"] = ", ".join(
                    f"{name};dur={milliseconds:.3f}" for name, milliseconds in record.timings_ms().items()
                )
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=record.request_id):
            try:
                await self._app(scope, receive, send_signed)
            except Exception:
                record.outcome = "internal_error"
                raise
            finally:
                _account(record, scope)


def _account(record: Record, scope: Scope) -> None:
    # the route's pattern, not the path: a caller must not be able to make up endpoints
    endpoint = getattr(scope.get("route"), "path", "unmatched")
    metrics.requests.labels(endpoint, record.outcome).inc()
    metrics.request_seconds.labels(endpoint).observe(record.elapsed_s)
    for name, seconds in record.stages.items():
        metrics.stage_seconds.labels(name).observe(seconds)
    quiet = endpoint.startswith(("/health", "/metrics")) and record.outcome == "ok"
    (logger.debug if quiet else logger.info)(
        "request",
        endpoint=endpoint,
        outcome=record.outcome,
        **{f"{k}_ms": v for k, v in record.timings_ms().items()},
    )


def _request_id(given: str) -> str:
    """The caller's id if it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex
