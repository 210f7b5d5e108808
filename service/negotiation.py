"""Which methods a path knows and which kinds of answer a caller accepts, as RFC 9110 has it."""

from collections.abc import Collection

from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import NotAcceptable


def negotiate(route: BaseRoute) -> None:
    """Have a route answer HEAD where it answers GET, and nobody who accepts none of its kinds of answer."""
    if isinstance(route, APIRoute):
        methods = route.methods or set()
        route.methods = methods | ({"HEAD"} if "GET" in methods else set())
        route.app = Negotiated(route.app, answer_kinds(route))


def answer_kinds(route: APIRoute) -> list[str]:
    """The kinds of content that a route's success is documented to have."""
    chosen = route.response_class
    response_class = chosen.value if isinstance(chosen, DefaultPlaceholder) else chosen
    documented = route.responses.get(200, {}).get("content", {})
    return list(dict.fromkeys([response_class.media_type, *documented]))


def allowed_methods(request: Request) -> list[str]:
    """The methods that the routes of a request's path know between them."""
    fitting = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({"OPTIONS"}.union(*(getattr(route, "methods", ()) for route in fitting)))


class Negotiated:
    """ASGI wrapper of one route; it raises ``NotAcceptable`` before anything is done for a caller who accepts none of
    the ``kinds`` of answer that the route gives."""

    def __init__(self, app: ASGIApp, kinds: Collection[str]) -> None:
        self._app = app
        self._kinds = kinds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = ",".join(Headers(scope=scope).getlist("accept"))
        if accepted and accepted != "*/*" and not any(accepts(accepted, kind) for kind in self._kinds):
            raise NotAcceptable(f"Accept takes nothing that there is: {', '.join(self._kinds)}.")
        await self._app(scope, receive, send)


def accepts(accepted: str, kind: str) -> bool:
    """Whether an ``Accept`` header takes a kind of content: the most exact of its ranges that fit decides.

    RFC 9110, section 12.5.1.
    """
    family = kind.partition("/")[0]
    weights = {range_: weight for range_, weight in map(_weighed, accepted.split(","))}
    for range_ in (kind, f"{family}/*", "*/*"):
        if range_ in weights:
            return weights[range_] > 0
    return False


def _weighed(part: str) -> tuple[str, float]:
    kind, options = parse_options_header(part)
    try:
        return kind.decode("latin-1"), float(options.get(b"q", 1))
    except ValueError:
        return kind.decode("latin-1"), 1.0
