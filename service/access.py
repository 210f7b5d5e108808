"""Who may ask: keys that callers show, and one for those who run the service."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Unauthorized
from service.settings import Settings

_RawHeaders = Iterable[tuple[bytes, bytes]]


class Keys:
    """Secrets, of which a request shows one as ``Authorization: Bearer`` or ``X-API-Key``."""

    def __init__(self, *secrets: str) -> None:
        self._digests = [_digest(secret.encode()) for secret in secrets]

    def admit(self, headers: _RawHeaders) -> bool:
        """Whether the headers show one of them."""
        return self.which(headers) is not None

    def which(self, headers: _RawHeaders) -> int | None:
        """The number of the one that the headers show. The time it takes does not tell how near a wrong one comes."""
        shown = [_digest(given) for given in _shown(headers)]
        # a list, so that no comparison is left out
        same = [any([compare_digest(ours, theirs) for theirs in shown]) for ours in self._digests]
        return same.index(True) if True in same else None


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()


def _shown(headers: _RawHeaders) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()


class Access:
    """ASGI middleware that answers requests without a key with ``refusal``, unless they go to an open route.

    It stands before the routes, so that what is not open is closed, paths that do not exist too.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        open_routes: Sequence[BaseRoute],
        refusal: Callable[[Scope, Unauthorized], ASGIApp],
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_routes = open_routes
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        key = scope["state"]["key"] = self._keys.which(scope["headers"])
        if key is not None or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        await self._refusal(scope, _refused("a key"))(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is not Match.NONE for route in self._open_routes)


def open_routes(routes: Iterable[BaseRoute], settings: Settings) -> list[BaseRoute]:
    """The routes that need no key: the page and the documentation, which hold nothing, and unless set otherwise health
    and metrics."""
    tags = {"page"} if settings.probes_need_key else {"page", "health"}
    return [
        route
        for route in routes
        # what is no route of ours is FastAPI's documentation
        if (tags.intersection(route.tags) if isinstance(route, APIRoute) else type(route) is Route)
    ]


def admin_only(key: str) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """A dependency of routes that only those who know this key may use.

    Raises:
        Unauthorized: the request does not show it.
    """
    keys = Keys(key)

    async def check(request: Request) -> None:
        if not keys.admit(request.headers.raw):
            raise _refused("the administrator's key")

    return check


def _refused(what: str) -> Unauthorized:
    return Unauthorized(f"This needs {what}, as Authorization: Bearer KEY or as X-API-Key: KEY.")
