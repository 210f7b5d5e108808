"""The picture is found in every kind of body, and a body that is wrong gets a clear answer."""

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from service.errors import ClientGone, MalformedBody, ServiceError
from service.uploads import SMALL_BYTES, from_base64, read_picture, taken_apart

MAX_BYTES = 1_000
PICTURE = bytes(range(250)) * 4  # exactly as long as allowed
BASE64 = base64.b64encode(PICTURE).decode()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with the picture it read, or with the code and detail of the error."""
    response: Response
    try:
        response = Response(await read_picture(Request(scope, receive), MAX_BYTES))
    except ServiceError as error:
        response = JSONResponse({"code": error.code, "detail": error.detail}, 400)
    await response(scope, receive, send)


async def post(**request: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(echo), base_url="http://test") as client:
        return await client.post("/", **request)


async def refusal(**request: Any) -> str:
    """The code of the error that the request gets."""
    response = await post(**request)
    assert response.status_code == 400
    return str(response.json()["code"])


def form(body: bytes) -> dict[str, Any]:
    """A request with a multipart body written by hand, its boundary "b"."""
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=b"}}


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "image/jpeg"},
        {"content-type": "IMAGE/PNG; name=x"},
        {"content-type": "application/octet-stream"},
        {"content-type": "application/x-www-form-urlencoded"},
        {},
    ],
)
async def test_a_raw_body_is_the_picture(headers: dict[str, str]) -> None:
    assert (await post(content=PICTURE, headers=headers)).content == PICTURE


async def test_a_form_holds_the_picture_as_file() -> None:
    assert (await post(files={"file": ("cat.jpg", PICTURE, "image/jpeg")})).content == PICTURE


async def test_a_picture_in_a_form_may_hold_what_looks_like_the_end_of_the_form() -> None:
    tricky = b"\r\n--\r\n--b\r--\n" * 50
    head = b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    response = await post(
        content=head + tricky + b"\r\n--boundary--\r\n",
        headers={"content-type": "multipart/form-data; boundary=boundary"},
    )
    assert response.content == tricky


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        f"data:image/jpeg;base64,{BASE64}",
        f"DATA:;BASE64,{BASE64}",
        base64.encodebytes(PICTURE).decode(),
        base64.urlsafe_b64encode(PICTURE).decode().rstrip("="),
    ],
    ids=["plain", "data uri", "data uri in capitals", "with line breaks", "urlsafe without padding"],
)
async def test_json_holds_the_picture_as_base64(text: str) -> None:
    assert (await post(json={"image": text})).content == PICTURE


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b""},
        {"content": b"", "headers": {"content-type": "image/jpeg"}},
        {"content": b"", "headers": {"content-type": "application/json"}},
        {"json": {"image": ""}},
        {"json": {"image": "data:image/jpeg;base64,"}},
        {"files": {"file": ("cat.jpg", b"")}},
    ],
)
async def test_an_empty_body_or_picture_is_called_empty(request_: dict[str, Any]) -> None:
    assert await refusal(**request_) == "empty_body"


@pytest.mark.parametrize(
    "request_",
    [
        {"content": PICTURE + b"x"},
        {"json": {"image": base64.b64encode(PICTURE + b"x").decode()}},
        {"files": {"file": ("cat.jpg", PICTURE + b"x")}},
    ],
    ids=["raw", "json", "form"],
)
async def test_one_byte_more_than_allowed_is_too_many_in_every_kind_of_body(request_: dict[str, Any]) -> None:
    assert await refusal(**request_) == "too_many_bytes"


@pytest.mark.parametrize("kind", ["text/plain", "video/mp4", "application/xml", "nonsense", "multipart/mixed"])
async def test_another_content_type_is_refused_with_those_that_are_read(kind: str) -> None:
    response = await post(content=PICTURE, headers={"content-type": kind})
    assert response.json()["code"] == "unsupported_media_type"
    for allowed in ("image/*", "application/octet-stream", "multipart/form-data", "application/json"):
        assert allowed in response.json()["detail"]


async def test_a_compressed_body_is_refused() -> None:
    assert await refusal(content=PICTURE, headers={"content-encoding": "gzip"}) == "unsupported_media_type"
    response = await post(content=PICTURE, headers={"content-encoding": "identity"})
    assert response.content == PICTURE


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"image": 1}',
        b'{"picture": ""}',
        b'{"image": "QUJD", "top_k": 3}',
        b'{"image": "not base64!"}',
        b'{"image": "QUJDR"}',
        b'{"image": "QU=JD"}',
        '{"image": "Ä"}'.encode(),
        b'{"image": "data:image/svg+xml,<svg/>"}',
    ],
)
async def test_malformed_json_and_base64_are_refused(content: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert await refusal(content=content, headers=headers) == "malformed_body"


@pytest.mark.parametrize("url", ["http://example.com/cat.jpg", " HTTPS://example.com/cat.jpg"])
async def test_urls_are_not_fetched(url: str) -> None:
    response = await post(json={"image": url})
    assert response.json()["code"] == "malformed_body"
    assert "not fetched" in response.json()["detail"]


FILE_HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    "request_",
    [
        {"content": FILE_HEAD + b"x\r\n--b--\r\n", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"x", "headers": {"content-type": f"multipart/form-data; boundary={'b' * 9_999}"}},
        {"files": {"photo": ("cat.jpg", PICTURE)}},
        {"files": [("file", ("a.jpg", b"a")), ("file", ("b.jpg", b"b"))]},
        {"files": {"file": ("cat.jpg", PICTURE)}, "data": {"top_k": "3"}},
        form(b"--b--\r\n"),
        form(b"no boundary at all"),
        form(FILE_HEAD + b"the end is missing"),
        form(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file name\r\n--b--\r\n'),
        form(b"--b\r\n\r\nno name\r\n--b--\r\n"),
        form(b"--b\r\n: \r\n\r\n--b--"),
        form(b"--b\r\nX: " + b"x" * 60_000 + b"\r\n\r\nx\r\n--b--\r\n"),
        form(b"--b\r\n" + b"X: x\r\n" * 5_000 + b"\r\nx\r\n--b--\r\n"),
        form(b"--b\r\nContent-Transfer-Encoding: base64\r\n" + FILE_HEAD[5:] + b"?\r\n--b--\r\n"),
    ],
    ids=[
        "no boundary given",
        "a huge boundary",
        "another name",
        "two files",
        "a field beside the file",
        "no part",
        "no boundary found",
        "no end",
        "a field instead of a file",
        "a part without a name",
        "an empty header",
        "a huge header",
        "very many headers",
        "bad base64",
    ],
)
async def test_a_malformed_form_is_refused(request_: dict[str, Any]) -> None:
    assert await refusal(**request_) == "malformed_body"


@pytest.mark.parametrize("kind", ["image/jpeg", "application/json", "multipart/form-data; boundary=b"])
async def test_an_endless_body_is_not_read_beyond_the_limit(kind: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b"x" * 100

    assert await refusal(content=endless(), headers={"content-type": kind}) == "too_many_bytes"
    assert sent <= MAX_BYTES * 2 + 65536


async def test_a_body_announced_as_too_long_is_not_read_at_all() -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    request = {"content": never(), "headers": {"content-length": str(MAX_BYTES + 1)}}
    assert await refusal(**request) == "too_many_bytes"


async def test_a_caller_who_leaves_while_sending_is_noticed() -> None:
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"half a pic", "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(ClientGone):
        await read_picture(Request(scope, receive), MAX_BYTES)


@pytest.mark.parametrize(("size", "here"), [(SMALL_BYTES, True), (SMALL_BYTES + 1, False)])
async def test_only_a_large_body_is_taken_apart_beside_the_event_loop(size: int, here: bool) -> None:
    thread = await taken_apart(bytes(size), lambda _: threading.get_ident())
    assert (thread == threading.get_ident()) == here


async def test_one_picture_does_not_wait_behind_what_many_have_to_do() -> None:
    gate = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    many = asyncio.create_task(taken_apart(bytes(SMALL_BYTES + 1), lambda _: gate.wait(20), threads=None))
    assert await taken_apart(bytes(SMALL_BYTES + 1), len) == SMALL_BYTES + 1
    assert not many.done()
    gate.set()
    assert await many


async def test_a_form_of_what_looks_like_boundaries_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.uploads.FormParser", lambda *_, **__: pytest.fail("it was"))
    assert await refusal(**form(FILE_HEAD + b"\r\n--bx" * 2000 + b"\r\n--b--\r\n")) == "malformed_body"


LARGE = Random(0).randbytes(2_000_000)


@pytest.mark.parametrize("cut", [0, 1, 2])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes], ids=["plain", "with line breaks"])
def test_base64_of_several_pieces_is_put_together(encode: Callable[[bytes], bytes], cut: int) -> None:
    text = encode(LARGE[cut:]).decode()
    assert from_base64(text) == from_base64(text.rstrip("=\n")) == LARGE[cut:]


@pytest.mark.parametrize("place", [-4, -3, 0, 400_000])
def test_padding_within_base64_of_several_pieces_is_malformed(place: int) -> None:
    text = bytearray(base64.b64encode(LARGE))
    at = (1 << 20) + place
    text[at : at + 4] = b"QQ=="
    with pytest.raises(MalformedBody):
        from_base64(text.decode())
