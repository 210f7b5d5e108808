"""What can go wrong with a request. These errors know no HTTP: `problems.py` has the one table of status codes."""

from collections.abc import Sequence
from typing import ClassVar


class ServiceError(Exception):
    """A request that ends without an answer.

    Attributes:
        code: stable snake_case name of the kind of error, for programs.
        title: the same for people, one short phrase per code.
        detail: what was wrong with this request and what is allowed; goes to the caller, so nothing internal.
    """

    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RetryableError(ServiceError):
    """The same request may succeed after `retry_after_s` seconds."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unauthorized(ServiceError):
    code = "unauthorized"
    title = "A key is needed"


class NoSuchPath(ServiceError):
    code = "not_found"
    title = "There is no such path"


class WrongMethod(ServiceError):
    code = "method_not_allowed"
    title = "The path does not know this method"

    def __init__(self, detail: str, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class NotAcceptable(ServiceError):
    code = "not_acceptable"
    title = "There is no answer of a kind that the caller accepts"


class EmptyBody(ServiceError):
    code = "empty_body"
    title = "No picture was sent"


class MalformedBody(ServiceError):
    """The body is not what its Content-Type says: bad multipart, JSON or base64, or no picture in it."""

    code = "malformed_body"
    title = "The body cannot be read"


class UnsupportedType(ServiceError):
    code = "unsupported_media_type"
    title = "This kind of body is not accepted"


class TooManyBytes(ServiceError):
    code = "too_many_bytes"
    title = "The picture has too many bytes"


class TooManyPixels(ServiceError):
    code = "too_many_pixels"
    title = "The picture has too many pixels"


class NotAnImage(ServiceError):
    code = "not_an_image"
    title = "The data is not a picture"


class TruncatedImage(ServiceError):
    code = "truncated_image"
    title = "The picture is cut short or damaged"


class InvalidParameter(ServiceError):
    code = "invalid_parameter"
    title = "A parameter has a value that is not allowed"


class UnknownModel(ServiceError):
    code = "unknown_model"
    title = "No such model is served"


class Overloaded(RetryableError):
    code = "overloaded"
    title = "The service is overloaded"


class EngineUnavailable(RetryableError):
    code = "engine_unavailable"
    title = "The model is not available"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"
    title = "There was not enough time"


class InferenceFailed(ServiceError):
    code = "inference_failed"
    title = "The model failed on this picture"


class ReloadFailed(ServiceError):
    """The model could not be loaded anew; the one before goes on."""

    code = "reload_failed"
    title = "The model was not reloaded"


class InternalError(ServiceError):
    """What nobody foresaw."""

    code = "internal_error"
    title = "A fault of the service"


class ClientGone(ServiceError):
    """Nobody is left to read an answer; it is only counted."""

    code = "client_gone"
    title = "The caller has left"
