"""The contract: what OpenAPI says of the routes, completed from what the routes really do."""

import re
from copy import copy
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute


def document(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document."""
    return get_openapi(
        title=app.title,
        version=version("volo-serve"),
        summary=app.summary,
        routes=[operation for route in app.routes if isinstance(route, APIRoute) for operation in _operations(route)],
    )


def _operations(route: APIRoute) -> list[BaseRoute]:
    """A route once for each of its methods, under an id of its own. HEAD goes without saying."""
    methods = sorted((route.methods or set()) - {"HEAD"})
    operations: list[BaseRoute] = []
    for method in methods:
        operation = copy(route)
        operation.methods = {method}
        operation.operation_id = re.sub(r"\W+", "_", f"{method}{route.path}").strip("_").lower()
        operations.append(operation)
    return operations
