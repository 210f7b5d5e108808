"""How long a request is worth its work: until its deadline, and for as long as its caller is there."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.requests import Request

from service.errors import ClientGone, DeadlineExceeded

WATCH_AFTER_S = 0.05
"""Most answers are there before, and to watch a caller takes a task: 16 us of CPU."""


class Patience:
    """Goes on with what is within for so many seconds at most; with None, for as long as it takes.

    Raises:
        DeadlineExceeded: it was not done by then.
        ClientGone: the caller, being watched, left before it was done.
    """

    def __init__(self, timeout_s: float | None, watch_after_s: float = WATCH_AFTER_S) -> None:
        self._timeout_s = timeout_s
        self._watch_after_s = watch_after_s
        self._limit = asyncio.timeout(timeout_s)
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._gone = False

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        return self

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
