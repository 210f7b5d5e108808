"""What the routes of other protocols share: errors in their words, and the schemas of bodies that they read."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from service.errors import ServiceError
from service.problems import problem

Words = Callable[[ServiceError, int], dict[str, Any]]
"""What a protocol says of an error that is answered with this status."""


def speaking(words: Words) -> type[APIRoute]:
    """Routes whose errors are told in these words; status, headers and accounts are those of any other."""

    class Dialect(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_in_dialect(request: Request) -> Response:
                try:
                    return await handle(request)
                except ServiceError as error:
                    told = problem(request.state.record, error)
                    headers = {name: value for name, value in told.headers.items() if not name.startswith("content-")}
                    body = json.dumps(words(error, told.status_code))
                    return Response(body, told.status_code, headers, media_type="application/json")

            return handle_in_dialect

    return Dialect


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
