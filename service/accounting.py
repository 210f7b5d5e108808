"""Every request ends in one counted outcome, with an id, its stages' times and a line in the log."""

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Self

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from service import metrics
from service.errors import ClientGone, Overloaded, ServiceError
from service.logs import logger

_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class Record:
    """What is known of one request.

    ``stages`` are seconds by name, ``outcome`` is ok or an error's code, ``model`` is the one that was asked.
    ``deadline_s`` is when its answer is of no use any more, of the monotonic clock. One that ``streams`` does not hold
    its whole body.
    ``answering_s`` is when the answer began, of the monotonic clock. ``timeline`` has each stage with when it began and
    its seconds; of several pictures in one request it has those of all, and ``stages`` the last one's.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrival_s = time.monotonic()
        self.deadline_s = math.inf
        self.streams = False
        self.outcome = "ok"
        self.model = ""
        self.answering_s: float | None = None
        self.stages: dict[str, float] = {}
        self.timeline: list[tuple[str, float, float]] = []

    @classmethod
    def new(cls) -> Self:
        """Of a request without an id."""
        return cls(token_hex(16))

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.arrival_s

    def ended_by(self, error: ServiceError) -> None:
        """The request ends in this error; if it was refused, that counts by its reason too."""
        self.outcome = error.code
        if isinstance(error, Overloaded):
            metrics.rejections.labels(self.model, error.reason).inc()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, however it ends."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.took(name, started_s, time.monotonic() - started_s)

    def took(self, name: str, began_s: float, seconds: float) -> None:
        """Note a stage that is over."""
        self.stages[name] = seconds
        self.timeline.append((name, began_s, seconds))

    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by stage, and so far in all."""
        return {name: round(seconds * 1e3, 3) for name, seconds in [*self.stages.items(), ("total", self.elapsed_s)]}


class Accounting:
    """ASGI middleware around everything else; hands each request's record on as ``request.state.record``.

    What nobody foresaw is logged here and answered with ``apology``, so that it has an id and is counted as well.
    """

    def __init__(self, app: ASGIApp, apology: Callable[[Record], ASGIApp]) -> None:
        self._app = app
        self._apology = apology

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(Headers(scope=scope).get("x-request-id", "")))
        scope.setdefault("state", {})["record"] = record
        bound = bind_contextvars(request_id=record.request_id)
        metrics.requests_in_flight.inc()
        try:
            await self._answer(record, scope, receive, _signed(record, send))
        except asyncio.CancelledError:
            record.outcome = "aborted"  # the process ends, and its patience with this request did before
            raise
        finally:
            metrics.requests_in_flight.dec()
            _account(record, scope)
            reset_contextvars(**bound)

    async def _answer(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            if record.outcome == ClientGone.code:
                return
            record.outcome = "internal_error"
            if record.answering_s is not None:
                raise  # all that is left is to cut the connection; the server does, and logs it
            logger.exception("internal error")
            await self._apology(record)(scope, receive, send)


def _signed(record: Record, send: Send) -> Send:
    """``send``, but answers have the record's headers."""

    async def send_signed(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.answering_s = time.monotonic()
            timing = ", ".join(f"{name};dur={ms:.3f}" for name, ms in record.timings_ms().items())
            ours = [
                (b"x-request-id", record.request_id.encode()),
                (b"server-timing", timing.encode()),
                (b"x-content-type-options", b"nosniff"),  # what callers send comes back in some answers
            ]
            message["headers"] = [*message["headers"], *ours]
        try:
            await send(message)
        except (OSError, RuntimeError) as error:
            # uvloop's of a connection that is closed has no type of its own; other RuntimeErrors are faults of ours
            if isinstance(error, OSError) or "closed" in str(error):
                record.outcome = ClientGone.code
            raise

    return send_signed


def _account(record: Record, scope: Scope) -> None:
    # the route's pattern, not the path: a caller must not be able to make up endpoints
    endpoint = getattr(scope.get("route"), "path", "unmatched")
    if record.stages and record.answering_s is not None:
        record.took("respond", record.answering_s, time.monotonic() - record.answering_s)
    metrics.requests_of(endpoint, record.model, record.outcome).inc()
    if record.outcome == "ok":  # a refusal takes no time: to mix it in would make a service that drowns look fast
        metrics.request_seconds_of(endpoint).observe(record.elapsed_s)
        for name, _, seconds in record.timeline:  # of every picture in it
            metrics.stage_seconds_of(record.model, name).observe(seconds)
    probed = "health" in getattr(scope.get("route"), "tags", ())
    quiet = probed and record.outcome in ("ok", "not_ready")  # they come often
    timings = {f"{name}_ms": milliseconds for name, milliseconds in record.timings_ms().items()}
    (logger.debug if quiet else logger.info)("request", endpoint=endpoint, outcome=record.outcome, **timings)


def _request_id(given: str) -> str:
    """The caller's id if it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else token_hex(16)
