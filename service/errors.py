"""What can go wrong with a request. These errors know no HTTP: `problems.py` has the one table of status codes."""

from collections.abc import Sequence
from typing import ClassVar, Literal


class ServiceError(Exception):
    """A request that ends without an answer.

    Attributes:
        code: stable snake_case name of the kind of error, for programs.
        title: the same for people, one short phrase per code.
        example: a detail, for the documentation.
        detail: what was wrong with this request and what is allowed; goes to the caller, so nothing internal.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    example: ClassVar[str]

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
    example = "This needs a key, as Authorization: Bearer KEY or as X-API-Key: KEY."


class NoSuchPath(ServiceError):
    code = "not_found"
    title = "There is no such path"
    example = "Which paths there are is told by /openapi.json."


class WrongMethod(ServiceError):
    code = "method_not_allowed"
    title = "The path does not know this method"
    example = "It takes OPTIONS, POST."

    def __init__(self, detail: str, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class RateLimited(RetryableError):
    code = "rate_limited"
    title = "The caller sends too many requests"
    example = "This caller sends more requests than it may."


class NotAcceptable(ServiceError):
    code = "not_acceptable"
    title = "There is no answer of a kind that the caller accepts"
    example = "Accept takes nothing that there is: application/json."


class MalformedRequest(ServiceError):
    code = "malformed_request"
    title = "This is no HTTP request"
    example = "This is no HTTP/1.1 request."


class HeadTooSlow(ServiceError):
    code = "head_too_slow"
    title = "The headers took too long"
    example = "The request's headers were not there within 10 s."


class HeadTooLarge(ServiceError):
    code = "head_too_large"
    title = "The headers are too large"
    example = "The request's line and headers have more than the 65,536 bytes that are allowed."


class EmptyBody(ServiceError):
    code = "empty_body"
    title = "No picture was sent"
    example = "There is no picture in the request."


class MalformedBody(ServiceError):
    """The body is not what its Content-Type says: bad multipart, JSON or base64, or no picture in it."""

    code = "malformed_body"
    title = "The body cannot be read"
    example = "The value of image is not base64."


class UnsupportedType(ServiceError):
    code = "unsupported_media_type"
    title = "This kind of body is not accepted"
    example = "text/html is not accepted."


class TooManyBytes(ServiceError):
    code = "too_many_bytes"
    title = "There are too many bytes"
    example = "The picture has more than the 20,000,000 bytes that are allowed."


class TooManyPictures(ServiceError):
    code = "too_many_pictures"
    title = "There are too many pictures"
    example = "At most 10,000 pictures are allowed at once; those before have been answered."


class TooManyPixels(ServiceError):
    code = "too_many_pixels"
    title = "The picture has too many pixels"
    example = "The picture has 12000 x 9000 pixels; at most 50,000,000 are allowed."


class TooIntricate(ServiceError):
    code = "too_intricate"
    title = "To read the picture's file would take far longer than its pixels do"
    example = "The JPEG has more than 32 scans."


class NotAnImage(ServiceError):
    code = "not_an_image"
    title = "The data is not a picture"
    example = "This is no JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."


class TruncatedImage(ServiceError):
    code = "truncated_image"
    title = "The picture is cut short or damaged"
    example = "The JPEG cannot be read to its end."


class InvalidParameter(ServiceError):
    code = "invalid_parameter"
    title = "A parameter has a value that is not allowed"
    example = "top_k: Input should be greater than or equal to 1 (got '0')"


class UnknownModel(ServiceError):
    code = "unknown_model"
    title = "No such model is served"
    example = "No model 'cats' is served; there is embedded."


Reason = Literal["queue_full", "deadline", "no_slot", "memory", "connections"]
"""Why there is too much."""


class Overloaded(RetryableError):
    """Refused at the door; ``reason`` is for those who run the service."""

    code = "overloaded"
    title = "The service is overloaded"
    example = "Too many pictures wait for the model."

    def __init__(
        self,
        detail: str,
        retry_after_s: float,
        reason: Reason = "queue_full",
    ) -> None:
        super().__init__(detail, retry_after_s)
        self.reason = reason


class EngineUnavailable(RetryableError):
    code = "engine_unavailable"
    title = "The model is not available"
    example = "The model is not loaded yet."


class InsufficientStorage(ServiceError):
    """The disk is full."""

    code = "insufficient_storage"
    title = "There is no room on the disk"
    example = "There is no room for the zip, which is kept until it is read; a tar or a form is not."


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"
    title = "There was not enough time"
    example = "The answer was not ready within 10 s."


class InferenceFailed(ServiceError):
    code = "inference_failed"
    title = "The model failed on this picture"
    example = "The model could not make sense of this picture."


class ReloadFailed(ServiceError):
    """The model could not be loaded anew; the one before goes on."""

    code = "reload_failed"
    title = "The model was not reloaded"
    example = "pets: pets.safetensors: it has no head.weight. The weights before it go on."


class InternalError(ServiceError):
    """What nobody foresaw."""

    code = "internal_error"
    title = "A fault of the service"
    example = "It has been logged under the request_id."


class ClientGone(ServiceError):
    """Nobody is left to read an answer; it is only counted."""

    code = "client_gone"
    title = "The caller has left"
    example = "The caller left while the picture was read."
