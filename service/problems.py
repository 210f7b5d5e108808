"""Errors as HTTP answers: the one table of status codes, and the form of RFC 9457."""

import math

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from service import errors
from service.accounting import Record

MEDIA_TYPE = "application/problem+json"

STATUS: dict[type[errors.ServiceError], int] = {
    errors.EmptyBody: 400,
    errors.MalformedBody: 400,
    errors.Unauthorized: 401,
    errors.NoSuchPath: 404,
    errors.UnknownModel: 404,
    errors.WrongMethod: 405,
    errors.NotAcceptable: 406,
    errors.ReloadFailed: 409,
    errors.TooManyBytes: 413,
    errors.TooManyPixels: 413,
    errors.NotAnImage: 415,
    errors.UnsupportedType: 415,
    errors.TruncatedImage: 422,
    errors.InvalidParameter: 422,
    errors.ClientGone: 499,  # nobody reads it; what nginx says for the same
    errors.InferenceFailed: 500,
    errors.InternalError: 500,
    errors.Overloaded: 503,
    errors.EngineUnavailable: 503,
    errors.DeadlineExceeded: 504,
}


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
    record.outcome = error.code
    status = STATUS[type(error)]
    told = Problem(
        type=f"urn:volo:problem:{error.code}",
        title=error.title,
        status=status,
        detail=error.detail,
        code=error.code,
        request_id=record.request_id,
    )
    return JSONResponse(told.model_dump(), status, _headers(error), media_type=MEDIA_TYPE)


def _headers(error: errors.ServiceError) -> dict[str, str]:
    match error:
        case errors.RetryableError():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        case errors.Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
        case errors.WrongMethod():
            return {"Allow": ", ".join(error.allowed)}
    return {}
