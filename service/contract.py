"""The contract: what OpenAPI says of the routes, completed from what the routes really do."""

import re
from copy import copy
from importlib.metadata import version
from itertools import chain
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from service.access import open_routes
from service.dialects.words import Dialect
from service.errors import RateLimited, Unauthorized
from service.problems import Problem, documented
from service.settings import Settings

_DESCRIPTION = """\
Send a photograph, get back what is in it.

Errors are `application/problem+json` (RFC 9457): `code` is stable, for programs; `detail` says what was wrong, for
people. Every answer has an `X-Request-ID`, the caller's own if there was one, and a `Server-Timing`.
"""

_TAGS = {
    "predict": "Pictures in, labels or vectors out.",
    "Open Inference Protocol": "As KServe and Triton speak it, with their clients.",
    "Hugging Face": "As `huggingface_hub.InferenceClient` asks.",
    "TorchServe": "As TorchServe's clients ask.",
    "health": "For balancers, orchestrators and Prometheus.",
    "admin": "For those who run the service; only where `VOLO_ADMIN_KEY` is set.",
}

_HEADERS = {
    "X-Request-ID": "By which the request is found in the log.",
    "Server-Timing": "Milliseconds in each stage, which browsers draw.",
}

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`X-API-Key: KEY`"},
}


def document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The application's OpenAPI document."""
    if app.openapi_schema is None:
        routes = [route for route in app.routes if isinstance(route, APIRoute)]
        closed = _closed(routes, settings)
        limited = _limited(routes, settings)
        operations = [_operations(route, route in closed, route in limited) for route in routes]
        contract = get_openapi(
            title=app.title,
            version=version("volo-serve"),
            summary=app.summary,
            description=_DESCRIPTION,
            routes=list(chain.from_iterable(operations)),
        )
        _drop_validation_errors(contract)
        tags = {tag for route in routes for tag in route.tags}
        contract["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items() if name in tags]
        components = contract.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        components["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
        }
        if closed:
            components["securitySchemes"] = _SCHEMES
        app.openapi_schema = contract
    return app.openapi_schema


def _closed(routes: list[APIRoute], settings: Settings) -> list[APIRoute]:
    """The routes that need a key."""
    if settings.keys:
        opened = open_routes(routes, settings)
        return [route for route in routes if route not in opened]
    return [route for route in routes if "admin" in route.tags]


def _limited(routes: list[APIRoute], settings: Settings) -> list[APIRoute]:
    """The routes that a caller may use only so often."""
    opened = open_routes(routes, settings)
    return [route for route in routes if route not in opened] if settings.rate_limit else []


def _drop_validation_errors(contract: dict[str, Any]) -> None:
    """FastAPI supposes that each parameter can be wrong, in its own words; where they can be, our routes say so."""
    for operation in (each for methods in contract["paths"].values() for each in methods.values()):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        contract["components"]["schemas"].pop(name, None)


def _operations(route: APIRoute, closed: bool, limited: bool) -> list[BaseRoute]:
    """A route once for each of its methods, under an id of its own. HEAD goes without saying."""
    told = route.documented if isinstance(route, Dialect) else documented
    methods = sorted((route.methods or set()) - {"HEAD"})
    operations: list[BaseRoute] = []
    for method in methods:
        operation = copy(route)
        operation.methods = {method}
        operation.operation_id = re.sub(r"\W+", "_", f"{method}{route.path}").strip("_").lower()
        if closed:
            operation.openapi_extra = {**(route.openapi_extra or {}), "security": [{name: []} for name in _SCHEMES]}
            operation.responses = {**operation.responses, 401: told(Unauthorized)[401]}
        if limited:
            operation.responses = {**operation.responses, 429: told(RateLimited)[429]}
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
        operation.responses = {
            status: {**response, "headers": {**response.get("headers", {}), **headers}}
            for status, response in sorted({200: {}, **operation.responses}.items())
        }
        operations.append(operation)
    return operations
