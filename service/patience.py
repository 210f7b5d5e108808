"""How long a request is worth its work: until its deadline, for as long as its caller is there, and the service too."""

import asyncio
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from starlette.requests import Request

from service.accounting import Record
from service.errors import ClientGone, DeadlineExceeded, EngineUnavailable, InvalidParameter

WATCH_AFTER_S = 0.05
"""Most answers are there before, and to watch a caller takes a task: 16 us of CPU."""


_HEADER = "X-Request-Timeout-Ms"
_MILLISECONDS = re.compile(r"0*[1-9]\d*", re.ASCII)

PARAMETERS: dict[str, Any] = {
    "parameters": [
        {
            "name": _HEADER,
            "in": "header",
            "description": "For how many milliseconds from now the answer is of use. What cannot be done by then is "
            "refused at once or given up. More than the service's own limit is that limit.",
            "schema": {"type": "integer", "minimum": 1},
        }
    ]
}
"""What a caller may say of its patience, for a route's ``openapi_extra``."""


def timeout_s(request: Request) -> float:
    """How many seconds the caller says it will wait; infinitely many if it says nothing.

    Raises:
        InvalidParameter: it says something else.
    """
    told = ", ".join(value.strip(" \t") for value in request.headers.getlist(_HEADER))  # given twice, it is none
    if _HEADER not in request.headers:
        return math.inf
    if not _MILLISECONDS.fullmatch(told):
        raise InvalidParameter(f"{_HEADER}: a whole number of milliseconds, 1 or more (got {told!r:.50})")
    return float(told) / 1e3


class Patience:
    """Goes on with what is within for so many seconds at most, of which some may be spent; with None, for as long as it
    takes.

    Raises:
        DeadlineExceeded: it was not done by then.
        ClientGone: the caller, being watched, left before it was done.
    """

    def __init__(self, timeout_s: float | None, watch_after_s: float = WATCH_AFTER_S, spent_s: float = 0.0) -> None:
        self._timeout_s = timeout_s
        self._watch_after_s = watch_after_s
        self._limit = asyncio.timeout(None if timeout_s is None else timeout_s - spent_s)
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._gone = False

    @classmethod
    def of(cls, request: Request, longest_s: float) -> Self:
        """With a request, from its headers on: as much as its caller has, and so many seconds at most.

        All that works for it finds the deadline in its record. Raises as ``timeout_s`` does.
        """
        record: Record = request.state.record
        patience_s = min(timeout_s(request), longest_s)
        record.deadline_s = record.arrival_s + patience_s
        return cls(patience_s, spent_s=record.elapsed_s)

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        return self

    def at_most(self, request: Request, timeout_s: float) -> None:
        """The body of this request says that its answer is of use for so long, from the headers on."""
        if self._timeout_s is None or timeout_s < self._timeout_s:
            record: Record = request.state.record
            self._timeout_s = timeout_s
            record.deadline_s = record.arrival_s + timeout_s
            self._limit.reschedule(asyncio.get_running_loop().time() + timeout_s - record.elapsed_s)

    def watch(self, request: Request) -> None:
        """From now on look whether the caller of this request, which is fully read, is there."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._watch_after_s, self._start, request)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()
        if self._watching:
            self._watching.cancel()
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._gone:
                raise ClientGone("The caller left before the answer.") from None
            raise DeadlineExceeded(f"The answer was not ready within {self._timeout_s:g} s.") from None

    def _start(self, request: Request) -> None:
        self._watching = asyncio.create_task(self._watch(request))

    async def _watch(self, request: Request) -> None:
        message = await request.receive()
        while message["type"] != "http.disconnect":  # after the body some servers have one more, empty part
            message = await request.receive()
        if not self._limit.expired():
            self._gone = True
            self._limit.reschedule(0)


class Closing:
    """The service's end, for what has no deadline that comes before it."""

    def __init__(self) -> None:
        self._over = False
        self._limits: set[asyncio.Timeout] = set()

    def end(self) -> None:
        """There is no more time: what is under way has to come to its end by itself, or is cut off."""
        if self._over:  # a limit that is over cannot be set again
            return
        self._over = True
        for limit in self._limits:
            limit.reschedule(0)

    @asynccontextmanager
    async def before(self) -> AsyncIterator[None]:
        """Go on with what is within until then.

        Raises:
            EngineUnavailable: it was not done.
        """
        limit = asyncio.timeout(0 if self._over else None)
        self._limits.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            raise EngineUnavailable("The service is shutting down; send what has no answer again.", 1.0) from None
        finally:
            self._limits.discard(limit)
