"""Many pictures are found in every kind of body, as they come; what is wrong with one of them leaves the others."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable
from itertools import count
from types import SimpleNamespace
from typing import Any
from zipfile import ZIP_STORED

import pytest
from packing import FORMS, Files, form, ndjson, packed_zip, split
from starlette.requests import Request
from starlette.types import Message

from service.archives import Entry, Limits
from service.bundles import ZIPS, Shelf, read_pictures
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    MalformedBody,
    Overloaded,
    ServiceError,
    TooManyBytes,
    UnsupportedType,
)

LIMITS = Limits(picture_bytes=10_000, total_bytes=1_000_000, pictures=100)
FILES: Files = {"a.jpg": b"A" * 700, "ä.png": bytes(range(256)) * 39, "c": b"\r\n--b\r\n--", "d.gif": b"D" * 10_000}
FORM_TYPE, NDJSON_TYPE = FORMS["form"][0], FORMS["NDJSON"][0]


class Upload:
    """A request that comes in pieces, and is told how much of it was taken."""

    def __init__(self, kind: str, pieces: Iterable[bytes], end: Message | None = None, **headers: str) -> None:
        self.received = 0
        self.read = False
        self.shelf = Shelf()
        self._pieces = iter(pieces)
        self._end = end or {"type": "http.request", "body": b"", "more_body": False}
        named = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        encoded = [(name.encode(), value.encode()) for name, value in named.items()]
        self.request = Request({"type": "http", "headers": encoded}, self._receive)

    async def _receive(self) -> Message:
        piece = next(self._pieces, None)
        if piece is None:
            return self._end
        self.received += len(piece)
        return {"type": "http.request", "body": piece, "more_body": True}

    def entries(self, limits: Limits = LIMITS) -> AsyncIterator[Entry]:
        return read_pictures(self.request, limits, 20, lambda: None, self._on_read, self.shelf)

    def _on_read(self) -> None:
        self.read = True

    async def found(self, limits: Limits = LIMITS) -> list[Entry]:
        return [entry async for entry in self.entries(limits)]

    async def failure(self, kind: type[ServiceError], limits: Limits = LIMITS) -> tuple[list[Entry], str]:
        """What came before the error of this kind, and what that says."""
        found = []
        try:
            async for entry in self.entries(limits):
                found.append(entry)
        except kind as error:
            return found, error.detail
        raise AssertionError(f"{len(found)} entries came, and no {kind.__name__}")


@pytest.mark.parametrize("size", [7, 100, 10**6])
@pytest.mark.parametrize(("kind", "pack"), FORMS.values(), ids=FORMS)
async def test_every_picture_comes_in_order_in_every_form_however_it_was_sent(kind: str, pack: Any, size: int) -> None:
    files = {**FILES, "c": b"C"} if kind == FORM_TYPE else FILES
    upload = Upload(kind, split(pack(files), size))
    assert await upload.found() == list(files.items())
    assert upload.read


async def test_windows_name_of_a_zip_is_known() -> None:
    assert await Upload("application/x-zip-compressed", [FORMS["zip"][1](FILES)]).found() == list(FILES.items())


@pytest.mark.parametrize("kind", ["", "application/json", "image/jpeg", "application/x-www-form-urlencoded", "a" * 999])
async def test_another_content_type_is_refused_with_those_that_are_read(kind: str) -> None:
    found, detail = await Upload(kind, []).failure(UnsupportedType)
    assert found == []
    for known in ("multipart/form-data", "application/zip", "application/x-tar", "application/x-ndjson"):
        assert known in detail
    assert len(detail) < 500


async def test_a_compressed_body_is_refused() -> None:
    await Upload(NDJSON_TYPE, [], content_encoding="gzip").failure(UnsupportedType)


async def test_a_body_announced_as_too_long_is_not_read_at_all() -> None:
    upload = Upload(NDJSON_TYPE, [ndjson(FILES)], content_length="1000001")
    await upload.failure(TooManyBytes)
    assert upload.received == 0


@pytest.mark.parametrize(("kind", "pack"), FORMS.values(), ids=FORMS)
async def test_a_body_is_not_read_beyond_the_limit(kind: str, pack: Any) -> None:
    upload = Upload(kind, split(pack(dict.fromkeys(map(str, range(100)), b"x" * 10_000)), 1000))
    limits = LIMITS._replace(total_bytes=5_000 if kind in ("application/zip", "application/gzip") else 500_000)
    found, detail = await upload.failure(TooManyBytes, limits)
    assert f"{limits.total_bytes:,}" in detail
    assert len(found) < 100
    assert upload.received <= limits.total_bytes + 1000


@pytest.mark.parametrize(("kind", "pack"), FORMS.values(), ids=FORMS)
async def test_a_picture_that_is_too_large_is_one_bad_entry(kind: str, pack: Any) -> None:
    files = {"large": bytes(10_001), "long": bytes(100_000), "right": bytes(10_000)}
    found = await Upload(kind, split(pack(files), 1000)).found()
    assert [type(entry.content) for entry in found] == [TooManyBytes, TooManyBytes, bytes]


async def test_no_more_is_read_than_is_asked_for() -> None:
    upload = Upload(FORM_TYPE, split(form(dict.fromkeys(map(str, range(100)), b"x" * 1000)), 2000))
    entries = upload.entries()
    await anext(entries)
    assert upload.received <= 4000


async def test_lines_without_end_do_not_gather() -> None:
    upload = Upload(NDJSON_TYPE, (b"x" * 1000 for _ in range(900)))
    (entry,) = await upload.found()
    assert isinstance(entry.content, TooManyBytes)


BAD_LINES: dict[str, tuple[bytes, str | None]] = {
    "ten thousand values": (b'{"image": [0' + b",0" * 10_000 + b'], "image": "Qg=="}', None),
    "no JSON": (b"{", None),
    "a list": (b"[]", None),
    "no picture": (b'{"id": "x"}', None),
    "another key": (b'{"image": "QUJD", "top_k": 3}', None),
    "no UTF-8": (b'{"image": "\xff"}', None),
    "half a character": (b'{"image": "QUJD", "id": "\\ud800"}', None),
    "a long id": (b'{"image": "QUJD", "id": "%s"}' % (b"x" * 1001), None),
    "no base64": (b'{"image": "not base64!", "id": "x"}', "x"),
    "a URL": (b'{"image": "https://example.com/cat.jpg", "id": "x"}', "x"),
}


@pytest.mark.parametrize(("line", "name"), BAD_LINES.values(), ids=BAD_LINES)
async def test_a_bad_line_is_one_bad_entry(line: bytes, name: str | None) -> None:
    good = b'{"image": "QUJD"}'
    first, bad, last = await Upload(NDJSON_TYPE, [good + b"\r\n\n" + line + b"\n \n" + good]).found()
    assert first == last == (None, b"ABC")
    assert (bad.name, type(bad.content)) == (name, MalformedBody)


async def test_lines_take_data_uris_and_no_name() -> None:
    line = {"image": f"data:image/png;base64,{b64encode(b'ABC').decode()}"}
    assert await Upload("application/jsonl", [json.dumps(line).encode()]).found() == [(None, b"ABC")]


async def test_blank_lines_are_none() -> None:
    assert await Upload(NDJSON_TYPE, [b"\n" * 99_999 + b" \n" * 9, b"  ", b"  \n", b'{"image": "QUJD"}']).found() == [
        (None, b"ABC")
    ]


async def test_a_form_of_what_looks_like_boundaries_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bundles.MultipartParser.write", lambda *_: pytest.fail("it was"))
    await Upload(FORM_TYPE, [PART + b"\r\n--bx" * 2000]).failure(MalformedBody)


PART = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("came", "body"),
    [
        (0, b"no boundary at all"),
        (0, PART[:-5]),
        (0, PART + b"--b"),
        (1, PART + b"--b\r\nX"),
        (1, PART + b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--b--\r\n'),
        (1, PART + b"--b\r\n\r\nno name\r\n--b--\r\n"),
        (1, PART + b"--b\r\nX: " + b"x" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"),
    ],
    ids=["no boundary found", "cut short", "no end", "cut in a header", "a field", "no headers", "a huge header"],
)
async def test_of_a_malformed_form_come_the_files_before(came: int, body: bytes) -> None:
    for size in (50, 10**6):
        found, _ = await Upload(FORM_TYPE, split(body, size)).failure(MalformedBody)
        assert len(found) == came


@pytest.mark.parametrize("kind", ["multipart/form-data", f"multipart/form-data; boundary={'b' * 9_999}"])
async def test_a_form_needs_its_boundary(kind: str) -> None:
    await Upload(kind, [PART]).failure(MalformedBody)


async def test_the_last_file_of_several_under_one_name_counts_as_well() -> None:
    assert len(await Upload(FORM_TYPE, [PART + PART + b"--b--\r\n"]).found()) == 2


@pytest.mark.parametrize(("kind", "pack"), FORMS.values(), ids=FORMS)
async def test_a_caller_who_leaves_while_sending_is_noticed(kind: str, pack: Any) -> None:
    upload = Upload(kind, [pack(FILES)[:500]], end={"type": "http.disconnect"})
    await upload.failure(ClientGone)
    assert not upload.read


async def test_a_caller_who_goes_silent_is_not_waited_for() -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http", "headers": [(b"content-type", b"application/zip")]}, never)
    with pytest.raises(DeadlineExceeded, match=r"Nothing more of the body came for 0\.01 s"):
        await anext(read_pictures(request, LIMITS, 0.01, lambda: None, lambda: None, Shelf()))


async def test_a_zip_may_not_drip_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bundles.time", SimpleNamespace(monotonic=count(0, 9).__next__))
    upload = Upload("application/zip", (b"x" for _ in range(1000)))
    found, detail = await upload.failure(DeadlineExceeded)
    assert (found, upload.received) == ([], 3)
    assert detail == "Less than 250,000 bytes of the zip came within 20 s."


async def test_a_zip_may_take_its_time_as_long_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bundles.time", SimpleNamespace(monotonic=count(0, 3).__next__))
    files = {str(number): bytes(1_000_000) for number in range(4)}
    upload = Upload("application/zip", split(packed_zip(files, ZIP_STORED), 150_000))
    assert len(await upload.found(Limits(1_000_000, 10_000_000, 10))) == 4


async def test_there_is_room_for_so_many_zips_and_no_more() -> None:
    gate, shelf = asyncio.Event(), Shelf()

    async def never() -> Message:
        await gate.wait()
        return {"type": "http.disconnect"}

    def begin() -> asyncio.Task[Entry]:
        request = Request({"type": "http", "headers": [(b"content-type", b"application/zip")]}, never)
        entries = read_pictures(request, LIMITS, 20, lambda: None, lambda: None, shelf)
        return asyncio.ensure_future(anext(entries))

    coming = [begin() for _ in range(ZIPS)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="Too many zips"):
        await begin()
    gate.set()
    await asyncio.wait(coming)
    with pytest.raises(ClientGone):
        await begin()
