"""Errors as HTTP answers: the one table of status codes, and the form of RFC 9457."""

import math
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from service import errors
from service.accounting import Record

MEDIA_TYPE = "application/problem+json"

Kinds = Iterable[type[errors.ServiceError]]
Responses = dict[int | str, dict[str, Any]]

STATUS: dict[type[errors.ServiceError], int] = {
    errors.MalformedRequest: 400,
    errors.EmptyBody: 400,
    errors.MalformedBody: 400,
    errors.Unauthorized: 401,
    errors.NoSuchPath: 404,
    errors.UnknownModel: 404,
    errors.WrongMethod: 405,
    errors.NotAcceptable: 406,
    errors.HeadTooSlow: 408,
    errors.ReloadFailed: 409,
    errors.TooManyBytes: 413,
    errors.TooManyPictures: 413,
    errors.TooManyPixels: 413,
    errors.NotAnImage: 415,
    errors.UnsupportedType: 415,
    errors.TruncatedImage: 422,
    errors.TooIntricate: 422,
    errors.InvalidParameter: 422,
    errors.HeadTooLarge: 431,
    errors.ClientGone: 499,  # nobody reads it; what nginx says for the same
    errors.RateLimited: 429,
    errors.InferenceFailed: 500,
    errors.InternalError: 500,
    errors.Overloaded: 503,
    errors.EngineUnavailable: 503,
    errors.DeadlineExceeded: 504,
    errors.InsufficientStorage: 507,
}


READING: Kinds = (errors.EmptyBody, errors.MalformedBody, errors.TooManyBytes, errors.UnsupportedType)
"""What can be wrong with a body that holds a picture."""

INFERRING: Kinds = (
    errors.InvalidParameter,
    errors.UnknownModel,
    errors.TooManyPixels,
    errors.NotAnImage,
    errors.TruncatedImage,
    errors.TooIntricate,
    errors.InferenceFailed,
    errors.Overloaded,
    errors.EngineUnavailable,
    errors.DeadlineExceeded,
)
"""What can go wrong between a picture and the model's answer."""


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(description="The kind of error as a URN: `urn:volo:problem:` and the code.")
    title: str = Field(description="The kind of error, for people.")
    status: int = Field(description="The answer's status.")
    detail: str = Field(description="What was wrong with this request, and what is allowed.")
    code: str = Field(description="The kind of error, for programs; it does not change.")
    request_id: str = Field(description="By which the request is found in the log; `X-Request-ID` tells it too.")


def problem(record: Record, error: errors.ServiceError) -> Response:
    """The answer that tells of an error; the request counts under its code."""
    record.ended_by(error)
    told = _told(type(error), error.detail, record.request_id)
    return JSONResponse(told, STATUS[type(error)], _headers(error), media_type=MEDIA_TYPE)


def _told(kind: type[errors.ServiceError], detail: str, request_id: str) -> dict[str, Any]:
    return Problem(
        type=f"urn:volo:problem:{kind.code}",
        title=kind.title,
        status=STATUS[kind],
        detail=detail,
        code=kind.code,
        request_id=request_id,
    ).model_dump()


def _headers(error: errors.ServiceError) -> dict[str, str]:
    match error:
        case errors.RetryableError():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        case errors.Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
        case errors.WrongMethod():
            return {"Allow": ", ".join(error.allowed)}
    return {}


def documented(*kinds: type[errors.ServiceError]) -> Responses:
    """Errors that a route may answer, as OpenAPI's ``responses``: by status, each with its codes and an example.

    Those that every route may answer are among them, except for ``Unauthorized``, which depends on the settings.
    """
    everywhere = errors.NotAcceptable, errors.InternalError
    return {status: _response(status, same) for status, same in by_status(*kinds, *everywhere).items()}


def exemplified(answer: Any) -> Responses:
    """An example of a route's success, as OpenAPI's ``responses``."""
    return {200: {"content": {"application/json": {"example": answer}}}}


def by_status(*kinds: type[errors.ServiceError]) -> dict[int, list[type[errors.ServiceError]]]:
    """Kinds of errors by the status of their answers, in the table's order."""
    sorted_: dict[int, list[type[errors.ServiceError]]] = {}
    for kind, status in STATUS.items():
        if kind in kinds:
            sorted_.setdefault(status, []).append(kind)
    return sorted_


def _response(status: int, kinds: list[type[errors.ServiceError]]) -> dict[str, Any]:
    schema = {
        "allOf": [{"$ref": "#/components/schemas/Problem"}],
        "properties": {"status": {"const": status}, "code": {"enum": [kind.code for kind in kinds]}},
    }
    examples = {
        kind.code: {"summary": kind.title, "value": _told(kind, kind.example, "4bf92f3577b34da6a3ce929d0e0e4736")}
        for kind in kinds
    }
    headers = {name: description for kind in kinds for name, description in _documented_headers(kind).items()}
    return {
        "description": "; ".join(f"`{kind.code}`: {kind.title[0].lower()}{kind.title[1:]}" for kind in kinds),
        "headers": headers,
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }


def _documented_headers(kind: type[errors.ServiceError]) -> dict[str, Any]:
    if issubclass(kind, errors.RetryableError):
        seconds = {"type": "integer", "minimum": 1}
        return {"Retry-After": {"description": "Seconds until it is worth another try.", "schema": seconds}}
    if issubclass(kind, errors.Unauthorized):
        return {"WWW-Authenticate": {"description": "How to show a key.", "schema": {"const": "Bearer"}}}
    return {}
