"""A connection to an HTTP caller: uvicorn's, but none can be held open for nothing, or fill the memory with a head."""

import asyncio
import resource
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service import metrics
from service.accounting import Record
from service.bundles import ZIPS
from service.errors import HeadTooLarge, HeadTooSlow, MalformedRequest, Overloaded, ServiceError
from service.logs import logger
from service.problems import problem

HEAD_BYTES = 65_536
"""A request's line and headers."""
READ_BYTES = 20_000
"""So much of its answer a caller must read in its time, or all: by the byte it would hold a connection for days."""
LINGER_S = 5.0
"""How long to read on behind the last answer, while its caller still sends."""
PIPELINED = 8
"""So many requests may wait behind the one that is being answered."""
OWN_FILES = 50
"""Descriptors of a worker's own, about 25, and of lines that nobody reads: without one, a batch ends and says so."""
LINGERING = 50
"""Connections, beyond those that are allowed, that may be read on behind their last answer."""
SPARE_FILES = OWN_FILES + LINGERING + ZIPS
"""Descriptors that are no connections which are allowed."""


class Connection(HttpToolsProtocol):
    """Hangs up on whoever takes longer than ``patience_s`` to send a request's head, or does not read its answer for so
    long; who reads slowly has the time. What is no request is answered in our form, and counted.
    """

    def __init__(self, *given: Any, patience_s: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self._patience_s = patience_s
        self._head_bytes = self._unfinished_bytes = 0
        self._in_head = True
        self._heads = 0
        self._begun = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: _WhileRead | None = None
        self._end_timer: _WhileRead | None = None
        self._refusal: ServiceError | None = None
        self._refused = False
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Closing(transport, partial(self._close, transport)))
        if self.client:  # of IPv4, to a socket that takes both: it is the same caller, or proxy
            self.client = self.client[0].removeprefix("::ffff:"), self.client[1]
        if len(self.connections) > most_connections():
            self._refuse(Overloaded("Too many connections are open.", 1.0, "connections"))
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._answering and self._answering is not self.cycle:  # uvicorn tells only the newest that its caller left
            self._answering.disconnected = True
            self._answering.message_event.set()
        self.pipeline.clear()
        self._stop_waiting()
        for timer in filter(None, [self._stall_timer, self._end_timer]):
            timer.cancel()

    def eof_received(self) -> None:
        self._expect_end()  # the loop closes now

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        in_head, heads = self._in_head, self._heads
        if in_head:
            self._expect_head()
        super().data_received(data)
        if in_head and self._heads == heads and not self._refused:
            self._unfinished_bytes += len(data)  # of a header that has no end yet nothing else tells
            if self._unfinished_bytes > HEAD_BYTES:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = self._begun = False
        self._heads += 1
        self._head_bytes = self._unfinished_bytes = 0
        self._stop_waiting()
        if len(self.pipeline) == PIPELINED:  # uvicorn takes as many as there are in what it reads at once
            self._refusal = Overloaded("Too many requests are sent before an answer is there.", 1.0, "connections")
            raise self._refusal
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, _Closing(self.transport, partial(self._part, self.cycle)))

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()
        if self._head_timer:  # of a body whose rest came behind its answer
            self._stop_waiting()
            self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and not self._is_answering() and not self.transport.is_closing():
            self._expect_head()  # the rest of a body that nobody reads shall not hold the connection

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self._while_read(self._hang_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to what it cannot read."""
        self._refuse(self._refusal or MalformedRequest("This is no HTTP/1.1 request."))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._patience_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self._is_answering():
            self._expect_head()  # what has begun to come is the next request
        elif self._begun:
            self._refuse(HeadTooSlow(f"The request's headers were not there within {self._patience_s:g} s."))
        else:
            self.transport.close()

    def _close(self, transport: asyncio.Transport) -> None:
        transport.close()
        self._expect_end()

    def _expect_end(self) -> None:
        """Whoever reads nothing shall not hold what is being closed: the loop itself waits until all is sent."""
        if self._end_timer is None:
            self._end_timer = self._while_read(self.transport.abort)

    def _while_read(self, end: Callable[[], None]) -> "_WhileRead":
        return _WhileRead(self.loop, self.transport, self._patience_s, end)

    def _hang_up(self) -> None:
        logger.info("hung up on a caller that does not read its answer", after_s=self._patience_s)
        self.transport.abort()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ServiceError) -> None:
        """Answer that this is no request, and hang up; behind an answer that is still to come it only hangs up."""
        self._refused = True
        self._stop_waiting()
        record = Record.new()
        answer = problem(record, error)
        metrics.requests_of("unmatched", "", error.code).inc()
        logger.info("request", request_id=record.request_id, endpoint="unmatched", outcome=error.code)
        if self._is_answering() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not self._is_answering() or not self.cycle.response_started:
            head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            status = f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}\r\n".encode()
            ours = b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
            self.transport.write(status + head + ours + bytes(answer.body))
            self._linger()
        else:
            self.transport.close()

    def _part(self, cycle: RequestResponseCycle) -> None:
        """Hang up behind a cycle's answer, which is the last one."""
        if cycle.more_body or self._refused:  # requests that nobody reads, left in the kernel, would cost it its end
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Hang up, but read on for a while, and read nothing: a caller who still sends would lose the answer."""
        self._refused = True
        self.flow.resume_reading()
        room = len(self.connections) <= most_connections() + LINGERING
        if room and self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()


class _WhileRead:
    """A timer that begins anew as long as ``READ_BYTES`` have gone each time. Of what is encrypted the transport may
    not say how much is left: then it is an ordinary one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, patience_s: float, end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._patience_s = patience_s
        self._end = end
        self._wait(transport.get_write_buffer_size())

    def cancel(self) -> None:
        self._timer.cancel()

    def _wait(self, left: int) -> None:
        self._timer = self._loop.call_later(self._patience_s, self._look, left)

    def _look(self, left_before: int) -> None:
        left = self._transport.get_write_buffer_size()
        if left <= left_before - READ_BYTES:
            self._wait(left)
        else:
            self._end()


class _Closing:
    """A transport that does something else when it is told to close."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def most_connections() -> int:
    """As many as there are descriptors for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, files - SPARE_FILES, files // 3)  # of few, the spare ones are hardly all needed at once


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The request's line and headers have more than the {HEAD_BYTES:,} bytes that are allowed.")
