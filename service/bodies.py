"""What the bodies of all requests take together."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.accounting import Record
from service.errors import Overloaded

RETRY_S = 1.0


class Bodies:
    """ASGI middleware that refuses to receive more while the bodies of requests under way have so many bytes.

    Those whose record says that they stream are not counted: they say themselves what they hold, by the state's
    ``hold``, which takes so many bytes until the request's end, or raises Overloaded if there are not as many.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: Record = scope["state"]["record"]
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > self._most_bytes:
                raise Overloaded("Too much is being uploaded at once.", RETRY_S, "memory")
            held += size
            self._held += size

        async def receive_counted() -> Message:
            message = await receive()
            if not record.streams:
                hold(len(message.get("body", b"")))
            return message

        scope["state"]["hold"] = hold
        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._held -= held


class Room:
    """So many bytes. Who wants some waits while all are taken; the last may take more than there are left."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        while self._free <= 0:
            await self._freed.wait()
        self._free -= size

    def give_back(self, size: int) -> None:
        self._free += size
        self._freed.set()  # which wakes those who wait now
        self._freed.clear()
