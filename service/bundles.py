"""A request's body -> the many pictures in it, one after the other, as they come."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.archives import CHUNK_BYTES, Chunks, Entry, Limits, limited
from service.errors import ClientGone, DeadlineExceeded, MalformedBody, Overloaded, ServiceError, UnsupportedType
from service.tars import tar_entries
from service.uploads import MOST_DELIMITERS, from_base64, parsed, taken_apart
from service.zips import zip_entries

ZIPS = 50
"""On the disk at once: each takes a descriptor beside its connection's, and there are not many to spare."""
ZIP_BYTES = 250_000
"""So many of a zip must come in the time that a single picture may take: what a slow line from a telephone carries."""

_BODIES = (
    "Send the pictures as multipart/form-data with a file for each, as application/zip, as application/x-tar, "
    'which may be gzipped, or as application/x-ndjson, on each line {"image": "<base64 or data URI>"}.'
)
_FORM = "A form must hold files and nothing else, as curl -F a=@cat.jpg -F b=@dog.jpg sends it."
_LINE = 'A line must be {"image": "<base64 or data URI>"}, which may have an "id" that is text, without other keys.'


class Shelf:
    """Places for zips, of which all requests of a process have so many."""

    def __init__(self, places: int = ZIPS) -> None:
        self._free = places

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of them. Raise Overloaded if there is none."""
        if not self._free:
            raise Overloaded("Too many zips are being uploaded at once.", 1.0, "connections")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def read_pictures(
    request: Request,
    limits: Limits,
    silence_s: float,
    hold: Callable[[], None],
    on_read: Callable[[], None],
    shelf: Shelf,
) -> AsyncGenerator[Entry, None]:
    """The pictures in the body of a request, which is read no faster than they are taken.

    Args:
        request: its body must not have been read yet.
        limits: what is allowed; the number of pictures is left to who takes them.
        silence_s: how long the caller may send nothing while the body is waited for, or a picture be in coming.
        hold: called before a picture is held in memory; what it raises is raised here.
        on_read: called as soon as the body is read to its end.
        shelf: where zips lie until they are answered.

    Raises (some of them only in the midst of the pictures):
        UnsupportedType: the body is of another kind, or compressed.
        TooManyBytes: it is, or is announced to be, larger than ``limits`` allow.
        TooManyPictures: its directory says so.
        MalformedBody: it is not what its Content-Type says, or is cut short.
        DeadlineExceeded: the caller went silent, or a picture was not whole in time, or too little came of a zip.
        Overloaded: there are too many zips already.
        ClientGone: the caller left while the body was read.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedType("Compressed bodies are not read; send the pictures without a Content-Encoding.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        limits.check_total(int(declared))
    kind, options = parse_options_header(request.headers.get("content-type"))
    name = kind.decode("latin-1")
    if _READERS.get(name) is zip_entries:  # which lies on the disk until it is whole

        def on_whole() -> None:
            hold()
            on_read()

        pace = _Pace(silence_s, ZIP_BYTES, f"Less than {ZIP_BYTES:,} bytes of the zip came within {silence_s:g} s.")
        paced = _paced(_chunks(request, silence_s, on_whole), pace)
        return _on_shelf(zip_entries(limited(paced, limits), limits), shelf)
    pace = _Pace(silence_s, limits.picture_bytes, f"A picture was not whole within {silence_s:g} s.")
    chunks = limited(_paced(_chunks(request, silence_s, on_read), pace), limits)
    if name == "multipart/form-data":
        hold()
        return _one_by_one(_form_entries(chunks, limits, options.get(b"boundary", b"")), pace)
    if entries := _READERS.get(name):
        hold()
        return _one_by_one(entries(chunks, limits), pace)
    told = name[:80] or "A body without a Content-Type"
    raise UnsupportedType(f"{told} is not accepted. {_BODIES}")


async def _on_shelf(entries: AsyncGenerator[Entry, None], shelf: Shelf) -> AsyncGenerator[Entry, None]:
    with shelf.place():
        async with aclosing(entries):
            async for entry in entries:
                yield entry


class _Pace:
    """How a picture comes: whole after so many seconds, unless it is so many bytes that have come by then."""

    def __init__(self, seconds: float, enough_bytes: int, too_slow: str) -> None:
        self._seconds = seconds
        self._enough_bytes = enough_bytes
        self._too_slow = too_slow
        self.begin()

    def begin(self) -> None:
        """From now on the next one is waited for."""
        self._begun_s = time.monotonic()
        self._bytes = 0

    def note(self, size: int) -> None:
        """So many bytes came; raise DeadlineExceeded if they are too few for the time."""
        self._bytes += size
        if self._bytes >= self._enough_bytes:
            self.begin()
        elif time.monotonic() - self._begun_s > self._seconds:
            raise DeadlineExceeded(self._too_slow)


async def _paced(chunks: Chunks, pace: _Pace) -> Chunks:
    async for chunk in chunks:
        pace.note(len(chunk))
        yield chunk


async def _one_by_one(entries: AsyncGenerator[Entry, None], pace: _Pace) -> AsyncGenerator[Entry, None]:
    """The same, of which the next is only waited for when the one before has been taken care of."""
    async with aclosing(entries):
        async for entry in entries:
            yield entry
            pace.begin()


async def _chunks(request: Request, silence_s: float, on_read: Callable[[], None]) -> Chunks:
    more = True
    while more:
        try:
            async with asyncio.timeout(silence_s):
                message = await request.receive()
        except TimeoutError:
            raise DeadlineExceeded(f"Nothing more of the body came for {silence_s:g} s.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("The caller left while the pictures were read.")
        more = message.get("more_body", False)
        body = message.get("body", b"")
        for start in range(0, len(body), CHUNK_BYTES):  # some servers give all that they have at once
            yield body[start : start + CHUNK_BYTES]
    on_read()


async def _form_entries(chunks: Chunks, limits: Limits, boundary: bytes) -> AsyncGenerator[Entry, None]:
    try:
        form = _Form(boundary, limits)
        async for chunk in chunks:
            for entry in form.write(chunk):
                yield entry
    except FormParserError as error:
        raise MalformedBody(f"The multipart body cannot be read. {_FORM}") from error
    if not form.ended:
        raise MalformedBody(f"The multipart body is cut short. {_FORM}")


class _Form:
    """Takes a form apart, and keeps a file until it is whole, unless it is too large."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        if not boundary:
            raise MalformedBody(f"The Content-Type names no boundary. {_FORM}")
        self.ended = False
        self._delimiter = b"\r\n--" + boundary
        self._limits = limits
        self._whole: deque[Entry] = deque()
        self._field = self._value = self._disposition = b""
        self._name = ""
        self._content = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def write(self, chunk: bytes) -> Iterator[Entry]:
        """The files that are whole with this chunk."""
        if chunk.count(self._delimiter) > MOST_DELIMITERS:
            raise MalformedBody(f"The multipart body has too many boundaries. {_FORM}")
        try:
            self._parser.write(chunk)
        finally:  # those before what is wrong come first
            while self._whole:
                yield self._whole.popleft()

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._content = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            raise MalformedBody(_FORM)
        self._name = options[b"filename"].decode(errors="replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        room = self._limits.picture_bytes + 1 - len(self._content)
        self._content += data[start : min(end, start + room)]

    def _on_part_end(self) -> None:
        self._whole.append(_entry(self._name, bytes(self._content), self._limits))

    def _on_end(self) -> None:
        self.ended = True


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str
    id: str | None = Field(None, max_length=1000)


async def _ndjson_entries(chunks: Chunks, limits: Limits) -> AsyncGenerator[Entry, None]:
    longest = limits.picture_bytes * 3 // 2 + 65536  # base64 makes 4 bytes of 3, or a little more
    async for line in _lines(chunks, longest):
        if len(line) > longest:
            yield Entry(None, limits.picture_too_large)
        elif line.strip():
            yield await taken_apart(line, partial(_line_entry, limits), threads=None)


async def _lines(chunks: Chunks, longest: int) -> AsyncIterator[bytes]:
    """Lines without their ends, hardly a blank one; of one that is longer, its beginning, which is longer too."""
    line = bytearray()
    async for chunk in chunks:
        *ends, beginning = chunk.split(b"\n")
        for end in ends:
            if line or end.strip():  # there may be 65,536 in a chunk, and nobody else has a turn meanwhile
                yield bytes(line + end[: longest + 1 - len(line)])
                line.clear()
        line += beginning[: longest + 1 - len(line)]
    yield bytes(line)


def _line_entry(limits: Limits, line: bytes) -> Entry:
    try:
        told = parsed(_Line, line, _LINE)
    except MalformedBody as error:
        return Entry(None, error)
    try:
        return _entry(told.id, from_base64(told.image), limits)
    except ServiceError as error:
        return Entry(told.id, error)


def _entry(name: str | None, picture: bytes, limits: Limits) -> Entry:
    return Entry(name, picture if len(picture) <= limits.picture_bytes else limits.picture_too_large)


_READERS: dict[str, Callable[[Chunks, Limits], AsyncGenerator[Entry, None]]] = {
    "application/zip": zip_entries,
    "application/x-zip-compressed": zip_entries,  # what Windows calls it
    "application/x-tar": tar_entries,
    "application/gzip": tar_entries,
    "application/x-gzip": tar_entries,
    "application/x-ndjson": _ndjson_entries,
    "application/jsonl": _ndjson_entries,
}
