"""So many requests a second for each caller, whichever HTTP worker they come to."""

from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, ip_network
from time import monotonic

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.buckets import Buckets
from service.errors import RateLimited


class RateLimit:
    """ASGI middleware that answers requests with ``refusal`` which their caller has no token for.

    Requests to an open route take none. A caller is who shows a key, if there are keys, or else an address.
    """

    def __init__(
        self,
        app: ASGIApp,
        buckets: Buckets,
        open_routes: Sequence[BaseRoute],
        refusal: Callable[[Scope, RateLimited], ASGIApp],
    ) -> None:
        self._app = app
        self._buckets = buckets
        self._open_routes = open_routes
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope):
            wait_s = self._buckets.take(_caller(scope), monotonic())
            if wait_s:
                error = RateLimited("This caller sends more requests than it may.", wait_s)
                await self._refusal(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is not Match.NONE for route in self._open_routes)


def _caller(scope: Scope) -> str:
    key: int | None = scope["state"].get("key")
    if key is not None:
        return f"key {key}"
    address = scope["client"][0] if scope.get("client") else ""
    try:
        of_ipv6 = IPv6Address(address.partition("%")[0])
    except ValueError:  # of IPv4, or whatever a proxy has put in its place
        return address
    if of_ipv6.ipv4_mapped:
        return str(of_ipv6.ipv4_mapped)
    return str(ip_network((of_ipv6, 64), strict=False))  # one subscriber has a whole network of them
