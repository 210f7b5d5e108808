"""What the routes of other protocols share: errors in their words, and schemas of bodies."""

import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Annotated, Any

from fastapi import Path, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from service.accounting import Record
from service.errors import RetryableError, ServiceError
from service.problems import Responses, by_status, documented, problem

ModelName = Annotated[str, Path(description="Which model is to answer.")]
Words = Callable[[ServiceError, int], dict[str, Any]]
"""What a protocol says of an error that is answered with this status."""


class Dialect(APIRoute):
    """A route whose errors are told in its ``words``; status, headers and accounts are those of any other."""

    words: Words

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_dialect(request: Request) -> Response:
            try:
                return await handle(request)
            except ServiceError as error:
                return self.tell(request.state.record, error)

        return handle_in_dialect

    def tell(self, record: Record, error: ServiceError) -> Response:
        """The error as an answer."""
        told = problem(record, error)
        headers = {name: value for name, value in told.headers.items() if not name.startswith("content-")}
        body = json.dumps(type(self).words(error, told.status_code))
        return Response(body, told.status_code, headers, media_type="application/json")

    def documented(self, *kinds: type[ServiceError]) -> Responses:
        """The errors as ``documented_in`` has them."""
        return documented_in(type(self).words, *kinds)


def speaking(words: Words) -> type[Dialect]:
    """Routes that tell errors in these words."""
    return type("Speaking", (Dialect,), {"words": staticmethod(words)})


def refusing(routes: Iterable[BaseRoute]) -> Callable[[Scope, ServiceError], Response]:
    """Tells whoever is refused before a route has seen the request, in the words of that route."""
    dialects = [route for route in routes if isinstance(route, Dialect)]

    def refuse(scope: Scope, error: ServiceError) -> Response:
        record: Record = scope["state"]["record"]
        for route in dialects:
            if route.matches(scope)[0] is not Match.NONE:
                return route.tell(record, error)
        return problem(record, error)

    return refuse


def documented_in(words: Words, *kinds: type[ServiceError]) -> Responses:
    """Errors of routes that speak so, as ``problems.documented`` has them; what fails outside of a route stays a
    problem."""
    responses, outside = documented(*kinds), documented()
    for status, same in by_status(*kinds).items():
        examples = {kind.code: {"summary": kind.title, "value": words(_example(kind), status)} for kind in same}
        told = {"application/json": {"schema": _schema(words(_example(same[0]), status)), "examples": examples}}
        responses[status]["content"] = {**told, **outside.get(status, {}).get("content", {})}
    return responses


def _example(kind: type[ServiceError]) -> ServiceError:
    return kind(kind.example, 1.0) if issubclass(kind, RetryableError) else kind(kind.example)


def _schema(told: dict[str, Any]) -> dict[str, Any]:
    types = {str: "string", int: "integer"}
    properties = {name: {"type": types[type(value)]} for name, value in told.items()}
    return {"type": "object", "required": list(told), "properties": properties}


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema for the documentation, without references: FastAPI collects none from here."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(each) for each in node]
        if not isinstance(node, dict):
            return node
        part = parts.get(node.get("$ref", "").rpartition("/")[2], {})
        return {key: resolved(value) for key, value in {**part, **node}.items() if key != "$ref"}

    return dict(resolved(schema))
