"""A request's body -> the bytes of one picture."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import Request

from service.errors import ClientGone, EmptyBody, MalformedBody, TooManyBytes, UnsupportedType
from service.priority import compute_behind
from service.threads import in_thread

_Options = Mapping[bytes, bytes]
_T = TypeVar("_T")
_Parsed = TypeVar("_Parsed", bound=BaseModel)

SMALL_BYTES = 1 << 18
"""A body up to here is taken apart at once, instead of waiting for a thread: half a millisecond, and for a form that is
made to be slow 1.3 ms."""
SINGLES = ThreadPoolExecutor(2, "taking apart", compute_behind)
"""For larger bodies with one picture, which shall not wait behind what many pictures have to do."""
MOST_DELIMITERS = 1000
"""Of a form, or a chunk of one. No picture in it may hold any, and whatever looks like one costs two microseconds."""
MOST_VALUES = 10_000
"""In the JSON around pictures: far more than there are, for their base64 is one value each."""

_BODIES = (
    "Send the picture as the raw body (Content-Type image/* or application/octet-stream), "
    'as multipart/form-data with one file named "file", '
    'or as application/json {"image": "<base64 or data URI>"}.'
)
_FORM = "A form must hold one file{named} and nothing else, as curl -F {field}=@cat.jpg sends it."
_JSON = 'A JSON body must be {"image": "<base64 or data URI>"}, without other keys.'
_BASE64 = "The value of image is not base64."
_PIECE = 1 << 20
"""Of base64, a multiple of four: in one piece 27 MB would keep everybody else waiting."""

_FROM_URLSAFE = bytes.maketrans(b"-_", b"+/")


async def read_picture(request: Request, max_bytes: int, field: str | None = "file") -> bytes:
    """The bytes of the picture that a request carries: as its body, as a form's file, or as base64 in JSON.

    The body is read as a stream and no further than it may be long; nothing is kept on disk.

    Args:
        request: its body must not have been read yet.
        max_bytes: limit on the picture itself, without what a form or base64 adds to it.
        field: what a form's file must be called; None allows any name.

    Raises:
        UnsupportedType: the body is of another kind, or compressed.
        TooManyBytes: the picture is, or is announced to be, larger than `max_bytes`.
        EmptyBody: there is no body, or an empty picture in it.
        MalformedBody: the body is not what its Content-Type says, or holds no picture.
        ClientGone: the caller left while the body was read.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    extract = _extractor(kind.decode("latin-1"))
    body = await read_body(request, max_bytes, encoded=extract is not _from_raw)
    picture = body
    if body and extract is not _from_raw:
        picture = await taken_apart(body, lambda body: extract(body, options, field))
    return checked(picture, max_bytes)


async def taken_apart(body: bytes, take_apart: Callable[[bytes], _T], threads: Executor | None = SINGLES) -> _T:
    """What is made of a body: beside the event loop, in one of these threads or of the loop's own, if it is large."""
    return take_apart(body) if len(body) <= SMALL_BYTES else await in_thread(threads, take_apart, body)


def checked(picture: bytes, max_bytes: int) -> bytes:
    """The picture itself, if there is one of at most so many bytes.

    Raises:
        EmptyBody: there is none.
        TooManyBytes: it is larger.
    """
    if not picture:
        raise EmptyBody(f"There is no picture in the request. {_BODIES}")
    if len(picture) > max_bytes:
        raise _too_many(max_bytes)
    return picture


async def read_body(request: Request, max_bytes: int, *, encoded: bool = False) -> bytes:
    """A request's whole body, with at most ``max_bytes`` of a picture in it, as it is or ``encoded``; raises as
    ``read_picture`` does."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedType("Compressed bodies are not read; send the picture without a Content-Encoding.")
    # base64 makes 4 bytes of 3, or a little more with line breaks; a form adds its headers
    limit = max_bytes * 3 // 2 + 65536 if encoded else max_bytes
    too_many = _too_many(max_bytes)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_many
    chunks, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The caller left while the picture was read.")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise too_many
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_many(max_bytes: int) -> TooManyBytes:
    return TooManyBytes(f"The picture has more than the {max_bytes:,} bytes that are allowed.")


def _from_raw(body: bytes, options: _Options, field: str | None) -> bytes:
    return body


def _from_form(body: bytes, options: _Options, field: str | None) -> bytes:
    files: list[File] = []
    form = _FORM.format(named=f' named "{field}"' if field else "", field=field or "data")

    def take(part: File | Field) -> None:
        if files or not isinstance(part, File) or (field and part.field_name != field.encode()):
            raise MalformedBody(form)
        files.append(part)

    boundary = options.get(b"boundary", b"")
    if boundary and body.count(b"\r\n--" + boundary) > MOST_DELIMITERS:
        raise MalformedBody(form)
    in_memory = {"MAX_MEMORY_FILE_SIZE": float("inf")}
    try:
        FormParser("multipart/form-data", take, take, boundary=boundary or None, config=in_memory).write(body)
    except FormParserError as error:
        raise MalformedBody(f"The multipart body cannot be read. {form}") from error
    if not files:
        raise MalformedBody(form)
    files[0].file_object.seek(0)
    return files[0].file_object.read()


class _JsonBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str


def _from_json(body: bytes, options: _Options, field: str | None) -> bytes:
    return from_base64(parsed(_JsonBody, body, _JSON).image)


def parsed(kind: type[_Parsed], body: bytes, wanted: str) -> _Parsed:
    """What the JSON around a picture says. Raises MalformedBody, which says what is wanted."""
    if values_in(body) > MOST_VALUES:
        raise MalformedBody(wanted)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise MalformedBody(wanted) from error


def values_in(body: bytes | memoryview) -> int:
    """How many values JSON may hold, at the most, by what begins or parts them: to be known before they are built, for
    of 30 MB of brackets come 1.5 GB, after 8 s."""
    codes, part = np.frombuffer(body, np.uint8), 1 << 20
    pieces = (codes[at : at + part] for at in range(0, len(codes), part))
    return 1 + sum(int(np.count_nonzero(piece == code)) for piece in pieces for code in b",[{")


def from_base64(text: str) -> bytes:
    """Bytes of base64, of its URL-safe kind or of a data URI, with or without line breaks and padding.

    Raises:
        MalformedBody: the text is something else, as a URL.
    """
    if re.match(r"\s*https?://", text, re.IGNORECASE):
        raise MalformedBody("Pictures are not fetched from URLs; send the picture itself, as base64.")
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise MalformedBody("A data URI must be base64: data:image/jpeg;base64,...")
    picture, rest = bytearray(), b""
    try:
        for start in range(0, len(text), _PIECE):
            rest += text[start : start + _PIECE].encode("ascii", "replace").translate(_FROM_URLSAFE, delete=b" \t\r\n")
            whole = max(0, len(rest) - 4) // 4 * 4  # what is padded comes last
            picture += base64.b64decode(rest[:whole], validate=True)
            if rest.find(b"=", 0, whole) >= 0:
                raise MalformedBody(_BASE64)
            rest = rest[whole:]
        picture += base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
    except binascii.Error as error:
        raise MalformedBody(_BASE64) from error
    return bytes(picture)


_Extract = Callable[[bytes, _Options, str | None], bytes]

_EXTRACTORS: dict[str, _Extract] = {
    "": _from_raw,
    "application/octet-stream": _from_raw,
    "application/x-www-form-urlencoded": _from_raw,  # what `curl --data-binary` says unless told otherwise
    "multipart/form-data": _from_form,
    "application/json": _from_json,
}


def _extractor(kind: str) -> _Extract:
    if kind.startswith("image/"):
        return _from_raw
    try:
        return _EXTRACTORS[kind]
    except KeyError:
        raise UnsupportedType(f"{kind[:80]} is not accepted. {_BODIES}") from None
