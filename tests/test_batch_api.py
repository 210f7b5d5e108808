"""Many pictures in one request: each has its line, in order and as soon as it is known, and nobody suffers from it."""

import asyncio
import errno
import json
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from calling import application, calling, eventually, listening, outcomes, queue_depth, rejections, serving_engine
from fakes import FakeDevice
from packing import FORMS, Files, form, ndjson, packed_tar, packed_zip, split
from prometheus_client import REGISTRY
from running import CAT
from test_api import png

from service import spool, zips
from service.batch_api import PictureLine, ProblemLine
from service.batch_request import AHEAD
from service.bodies import Room
from service.images import Opened
from service.outputs import Outputs
from service.settings import Settings

PHOTO = CAT.read_bytes()
FORM_TYPE, NDJSON_TYPE = FORMS["form"][0], FORMS["NDJSON"][0]
FILES: Files = {"cat.jpg": PHOTO, "1.png": png(1), "text.txt": b"no picture", "2.png": png(2), "half.jpg": PHOTO[:5000]}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine)) as client:
        yield client


async def post(client: httpx.AsyncClient, kind: str, body: Any, query: str = "") -> httpx.Response:
    return await client.post(f"/predict/batch?{query}", content=body, headers={"content-type": kind})


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def numbered(count: int) -> Files:
    return {str(number): png(number % 256) for number in range(count)}


def classes(answer: httpx.Response) -> list[int]:
    return [line["predictions"][0]["index"] for line in lines(answer)]


@pytest.mark.parametrize("query", ["", "top_k=2&threshold=0.01", "evidence=true&top_k=1&overlay=true"])
@pytest.mark.parametrize(("kind", "pack"), FORMS.values(), ids=FORMS)
async def test_each_picture_is_answered_as_alone_in_every_form(
    client: httpx.AsyncClient, kind: str, pack: Any, query: str
) -> None:
    told = lines(await post(client, kind, pack(FILES), query))
    assert [(line["index"], line["name"]) for line in told] == list(enumerate(FILES))
    for line, picture in zip(told, FILES.values(), strict=True):
        alone = await client.post(f"/predict?{query}", content=picture)
        assert line["status"] == alone.status_code
        for key in alone.json().keys() - {"type", "request_id", "timings_ms"}:
            assert line[key] == alone.json()[key]


async def test_lines_are_what_is_documented(client: httpx.AsyncClient) -> None:
    told = lines(await post(client, FORM_TYPE, form(FILES)))
    for line in told:
        documented = PictureLine if line["status"] == 200 else ProblemLine
        assert documented.model_validate(line).model_dump(exclude_unset=True) == line
    assert [line["status"] for line in told] == [200, 200, 415, 200, 422]
    document = (await client.get("/openapi.json")).json()["paths"]["/predict/batch"]["post"]
    schema = document["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    assert [each["$ref"].rpartition("/")[2] for each in schema["anyOf"]] == ["PictureLine", "ProblemLine"]
    assert [kind.partition(";")[0] for kind, _ in FORMS.values()] == list(document["requestBody"]["content"])


@pytest.mark.parametrize("kind", FORMS)
async def test_the_order_is_kept_whatever_is_done_first(client: httpx.AsyncClient, kind: str) -> None:
    files = {**{f"photo {number}": PHOTO for number in range(3)}, **numbered(300)}
    assert classes(await post(client, FORMS[kind][0], FORMS[kind][1](files)))[3:] == [n % 256 for n in range(300)]


async def test_it_is_one_request_and_its_outcome_is_ok_whatever_single_pictures_are(client: httpx.AsyncClient) -> None:
    def bad() -> float:
        labels = {"model": "embedded", "outcome": "not_an_image"}
        return REGISTRY.get_sample_value("volo_batch_lines_total", labels) or 0.0

    before, bad_before = outcomes(), bad()
    await post(client, FORM_TYPE, form(FILES))
    await post(client, FORM_TYPE, form({"a": b"bad"}))
    assert outcomes() - before == {("/predict/batch", "ok"): 2}
    assert bad() == bad_before + 2


async def test_the_limits_of_a_picture_hold_for_each() -> None:
    files = {"wide": png(1, (1000, 1000)), "long": bytes(10_001), "good": png(2)}
    async with serving_engine() as engine:
        app = application(engine, max_bytes=10_000, max_pixels=500_000)
        async with calling(app) as client:
            for kind, pack in FORMS.values():
                told = lines(await post(client, kind, pack(files)))
                assert [line.get("code") for line in told] == ["too_many_pixels", "too_many_bytes", None]


REFUSALS: dict[str, tuple[int, str, str, Any]] = {
    "an empty form": (400, "empty_body", FORM_TYPE, b"--b--\r\n"),
    "an empty zip": (400, "empty_body", "application/zip", packed_zip({})),
    "a zip of folders": (400, "empty_body", "application/zip", packed_zip({"folder/": b"", ".DS_Store": b"x"})),
    "an empty tar": (400, "empty_body", "application/x-tar", packed_tar({})),
    "no lines": (400, "empty_body", NDJSON_TYPE, b"\n"),
    "no form": (400, "malformed_body", FORM_TYPE, b"nonsense"),
    "no zip": (400, "malformed_body", "application/zip", b"nonsense"),
    "no tar": (400, "malformed_body", "application/x-tar", b"nonsense"),
    "too long": (413, "too_many_bytes", NDJSON_TYPE, bytes(1_000_001)),
    "too long, length not said": (413, "too_many_bytes", "application/zip", split(bytes(1_000_001), 1000)),
    "one picture": (415, "unsupported_media_type", "image/jpeg", PHOTO),
}


async def later(pieces: Any) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(("status", "code", "kind", "body"), REFUSALS.values(), ids=REFUSALS)
async def test_what_is_wrong_before_the_first_picture_is_a_problem(
    status: int, code: str, kind: str, body: Any
) -> None:
    before = outcomes()
    async with serving_engine() as engine, calling(application(engine, batch_max_bytes=1_000_000)) as client:
        answer = await post(client, kind, body if isinstance(body, bytes) else later(body))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert outcomes() - before == {("/predict/batch", code): 1}


@pytest.mark.parametrize(
    ("status", "code", "query"), [(422, "invalid_parameter", "top_k=0"), (404, "unknown_model", "model=other")]
)
async def test_a_wrong_query_is_refused_before_the_body_is_read(
    client: httpx.AsyncClient, status: int, code: str, query: str
) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    answer = await post(client, FORM_TYPE, never(), query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


BREAKS: dict[str, tuple[int, str, str, bytes]] = {
    "a form cut short": (400, "malformed_body", FORM_TYPE, form(numbered(5))[:-20]),
    "a field in a form": (400, "malformed_body", FORM_TYPE, form(numbered(4))[:-7] + b"--b\r\n\r\n3\r\n--b--\r\n"),
    "a tar cut short": (400, "malformed_body", "application/x-tar", packed_tar(numbered(5))[: 9 * 512 + 10]),
    "too many pictures": (413, "too_many_pictures", NDJSON_TYPE, ndjson(numbered(10))),
    "too many bytes": (413, "too_many_bytes", FORM_TYPE, form({**numbered(4), "long": bytes(9000)})),
}


@pytest.mark.parametrize(("status", "code", "kind", "body"), BREAKS.values(), ids=BREAKS)
async def test_what_came_before_a_break_is_answered_and_the_last_line_tells_of_it(
    status: int, code: str, kind: str, body: bytes
) -> None:
    before = outcomes()
    limits = {"batch_max_pictures": 4, "batch_max_bytes": 8000}
    if kind != FORM_TYPE:
        limits["batch_max_bytes"] = 10**6
    async with serving_engine() as engine, calling(application(engine, **limits)) as client:
        *told, last = lines(await post(client, kind, later(split(body, 100))))
    assert [line["predictions"][0]["index"] for line in told] == [0, 1, 2, 3]
    assert last.keys() == {"status", "code", "title", "detail"}
    assert (last["status"], last["code"]) == (status, code)
    assert outcomes() - before == {("/predict/batch", code): 1}


async def test_a_picture_on_which_the_service_fails_is_one_bad_line(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ = Opened.__init__

    def clumsy(opened: Opened, data: bytes, *limits: Any) -> None:
        if data == b"trip":
            raise ZeroDivisionError("the secret recipe")
        open_(opened, data, *limits)

    monkeypatch.setattr(Opened, "__init__", clumsy)
    first, bad, last = lines(await post(client, FORM_TYPE, form({"1": png(1), "2": b"trip", "3": png(3)})))
    assert (first["status"], bad["status"], last["status"]) == (200, 500, 200)
    assert bad["code"] == "internal_error"
    assert "secret" not in bad["detail"]


async def test_a_picture_on_which_the_model_fails_is_one_bad_line() -> None:
    device = FakeDevice()
    device.poison = {7}
    async with serving_engine(device) as engine, calling(application(engine)) as client:
        told = lines(await post(client, FORM_TYPE, form(numbered(20))))
    assert [line["index"] for line in told if line["status"] != 200] == [7]
    assert told[7]["code"] == "inference_failed"


class Sender:
    """A connection over which a body is sent bit by bit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int, kind: str, length: int = 10**6, query: str = "") -> "Sender":
        connection = socket.socket()
        for direction in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # little lies between the two ends
            connection.setsockopt(socket.SOL_SOCKET, direction, 1 << 16)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connection)
        head = (
            f"POST /predict/batch?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        )
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        return cls(reader, writer)

    async def send(self, piece: bytes) -> None:
        self.writer.write(piece)
        await self.writer.drain()

    async def read_until(self, text: bytes) -> bytes:
        return await self.reader.readuntil(text)

    async def leave(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@pytest.mark.parametrize("form", ["form", "tar", "tar.gz", "NDJSON"])
async def test_the_first_line_comes_before_the_last_picture_was_sent(form: str) -> None:
    kind, pack = FORMS[form]
    noise = {name: png(1) + os.urandom(1000) for name in ("first", "last")}  # which a gzip cannot hold back
    body = pack(noise)
    async with serving_engine() as engine, listening(application(engine)) as port:
        sender = await Sender.to(port, kind, len(body))
        await sender.send(body[: int(len(body) * (0.3 if kind == "application/x-tar" else 0.7))])
        assert b'"first","status":200' in await sender.read_until(b"}\n")
        await sender.send(body[int(len(body) * (0.3 if kind == "application/x-tar" else 0.7)) :])
        await sender.read_until(b'"name":"last","status":200')
        await sender.leave()


async def test_when_the_service_ends_a_last_line_says_so() -> None:
    device, before = FakeDevice(), outcomes()
    async with serving_engine(device) as engine:
        app = application(engine)
        async with listening(app) as port:
            sender = await Sender.to(port, NDJSON_TYPE)
            await sender.send(ndjson({"one": png(1)}) + b"\n")
            assert b'"one","status":200' in await sender.read_until(b"}\n")
            device.gate.clear()
            await sender.send(ndjson({"two": png(2), "three": png(3)}) + b"\n")
            await eventually(lambda: len(device.batches) == 2)
            app.state.models.closing.end()
            *_, last = unchunked((await sender.reader.read()).lstrip(b"\r\n")).splitlines()
            device.gate.set()
            await sender.leave()
    told = json.loads(last)
    assert (told["status"], told["code"], told.get("index")) == (503, "engine_unavailable", None)
    assert "shutting down" in told["detail"]
    assert outcomes() - before == {("/predict/batch", "engine_unavailable"): 1}


class OneRun(FakeDevice):
    """Its gate, opened for the first time, lets one run through."""

    def run(self, *given: Any) -> Outputs:
        if len(self.batches) == 1:
            self.gate.clear()
        return super().run(*given)


@pytest.mark.parametrize(("cut_by", "status"), [("the service's end", 503), ("a full disk", 507)])
async def test_a_picture_for_which_the_queue_has_no_place_yet_does_not_hold_up_the_last_line(
    cut_by: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def under_way() -> int:
        return sum(getattr(task.get_coro(), "__name__", "") == "_answer" for task in asyncio.all_tasks())

    def no_file(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    device = OneRun() if status == 507 else FakeDevice()
    async with serving_engine(device) as engine:
        app = application(engine, max_batch=1)
        async with listening(app) as port, asyncio.timeout(10):
            with stuck(device):
                sender = await Sender.to(port, NDJSON_TYPE)
                await sender.send(ndjson(numbered(40)))
                await eventually(lambda: under_way() == 1 + AHEAD + 2)  # one is waited for, one waits for a place
                if status == 503:
                    app.state.models.closing.end()
                else:
                    monkeypatch.setattr(spool, "TemporaryFile", no_file)
                    monkeypatch.setattr(spool, "MEMORY_BYTES", 0)
                    device.gate.set()
                answer = await sender.reader.read()
                assert under_way() == 0
                await sender.leave()
    *_, last = unchunked(answer.partition(b"\r\n\r\n")[2]).splitlines()
    assert json.loads(last)["status"] == status


async def test_what_has_no_line_when_the_service_ends_is_told_so_in_the_usual_way() -> None:
    async with serving_engine() as engine:
        app = application(engine)
        async with listening(app) as port:
            sender = await Sender.to(port, NDJSON_TYPE)
            await eventually(lambda: in_flight() > 0)
            app.state.models.closing.end()
            answer = await sender.reader.read()
            await sender.leave()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"\r\nretry-after: 1\r\n" in answer


@pytest.mark.parametrize(
    ("fault", "status", "code"), [(errno.EMFILE, 503, "overloaded"), (errno.ENOSPC, 507, "insufficient_storage")]
)
async def test_why_lines_cannot_wait_is_told_as_for_a_zip(
    client: httpx.AsyncClient, fault: int, status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(**_: Any) -> None:
        raise OSError(fault, os.strerror(fault))

    before = rejections()
    monkeypatch.setattr(spool, "TemporaryFile", no_file)
    monkeypatch.setattr(spool, "MEMORY_BYTES", 0)
    monkeypatch.setattr(zips, "TemporaryFile", no_file)
    *_, last = lines(await post(client, NDJSON_TYPE, ndjson(numbered(3))))
    zipped = await post(client, "application/zip", packed_zip(numbered(3)))
    assert (last["status"], last["code"]) == (status, code) == (zipped.status_code, zipped.json()["code"])
    assert rejections() - before == ({("embedded", "connections"): 2} if status == 503 else {})


def in_flight() -> float:
    return REGISTRY.get_sample_value("volo_requests_in_flight") or 0.0


def unchunked(body: bytes) -> bytes:
    """A body without its Transfer-Encoding."""
    chunks, start = [], 0
    while start < len(body):
        begins = body.index(b"\r\n", start) + 2
        ends = begins + int(body[start:begins], 16)
        chunks.append(body[begins:ends])
        start = ends + 2
    return b"".join(chunks)


async def test_who_sends_everything_before_reading_anything_is_answered() -> None:
    files = {str(number): png(number % 256) + bytes(60_000) for number in range(600)}
    body = form(files)  # 36 MB, and 9 MB of answers: far more than sockets hold
    async with serving_engine() as engine, listening(application(engine)) as port, asyncio.timeout(60):
        sender = await Sender.to(port, FORM_TYPE, len(body), "top_k=1000")
        await sender.send(body)
        await sender.read_until(b"\r\n\r\n")
        answer = unchunked(await sender.reader.read())
        await sender.leave()
    assert [json.loads(line)["status"] for line in answer.splitlines()] == [200] * len(files)
    assert len(answer) > 9_000_000


async def test_a_caller_who_goes_silent_is_cut_off() -> None:
    before = outcomes()
    body = form(numbered(2))
    async with serving_engine() as engine, listening(application(engine, timeout_s=0.1)) as port:
        silent = await Sender.to(port, FORM_TYPE)
        assert b" 504 " in await silent.read_until(b"\r\n")
        stopped = await Sender.to(port, FORM_TYPE)
        await stopped.send(body[:-10])
        assert b'"status":504,"code":"deadline_exceeded"' in await stopped.reader.read()
        for sender in (silent, stopped):
            await sender.leave()
    assert outcomes() - before == {("/predict/batch", "deadline_exceeded"): 2}


@pytest.mark.parametrize(
    ("kind", "pack", "reason"),
    [(FORM_TYPE, form, b"not whole within 0.3 s"), ("application/zip", packed_zip, b"of the zip came within 0.3 s")],
)
async def test_what_drips_is_cut_off_though_its_caller_is_never_silent(kind: str, pack: Any, reason: bytes) -> None:
    body = pack(numbered(2))
    async with serving_engine() as engine, listening(application(engine, timeout_s=0.3)) as port:
        slow = await Sender.to(port, kind)
        await slow.send(body[:-100])
        answer = asyncio.create_task(slow.reader.read())
        for byte in body[-100:-1]:
            if answer.done():
                break
            await slow.send(bytes([byte]))
            await asyncio.sleep(0.02)
        told = (await answer).splitlines()
        assert any(b'"code":"deadline_exceeded"' in line and reason in line for line in told)
        await slow.leave()


@pytest.mark.parametrize(("kind", "pack"), FORMS.values(), ids=FORMS)
async def test_pictures_that_are_coming_take_no_more_memory_than_all_bodies_may(kind: str, pack: Any) -> None:
    async with serving_engine() as engine, listening(application(engine, max_bytes=1000, body_memory=3000)) as port:
        held = [await Sender.to(port, FORM_TYPE) for _ in range(2)]
        for sender in held:
            await sender.send(form(numbered(1))[:100])
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def is_told(status: int) -> None:
                for _ in range(1000):
                    if (await post(client, kind, pack(numbered(1)))).status_code == status:
                        return
                    await asyncio.sleep(0.01)
                raise AssertionError(f"no {status}")

            await is_told(503)
            for sender in held:
                await sender.leave()
            await is_told(200)  # what they had is given back


async def test_what_is_not_done_in_the_time_that_the_caller_has_is_a_line_that_says_so() -> None:
    device = FakeDevice()
    async with serving_engine(device) as engine, calling(application(engine)) as client:
        device.gate.clear()
        running = asyncio.create_task(client.post("/predict", content=png(1)))
        await device.under_way()
        headers = {"Content-Type": FORM_TYPE, "X-Request-Timeout-Ms": "50"}
        told = lines(await client.post("/predict/batch", content=form(numbered(3)), headers=headers))
        assert [(line["status"], line["code"]) for line in told] == [(504, "deadline_exceeded")] * 3
        device.gate.set()
        assert (await running).status_code == 200
    assert sum(map(len, device.batches)) == 1


def held() -> tuple[int, int]:
    """Open files, temporary and others, and tasks."""
    return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())


@contextmanager
def stuck(device: FakeDevice) -> Iterator[None]:
    device.gate.clear()
    try:
        yield
    finally:
        device.gate.set()


@pytest.mark.parametrize("share", [0.9, 1.0], ids=["while sending", "while waiting"])
@pytest.mark.parametrize(("kind", "pack"), FORMS.values(), ids=FORMS)
async def test_who_leaves_is_not_computed_for_and_leaves_nothing_behind(kind: str, pack: Any, share: float) -> None:
    device = FakeDevice()
    body = pack(numbered(40))
    async with serving_engine(device) as engine, listening(application(engine)) as port:
        before, resting = outcomes(), held()
        with stuck(device):
            sender = await Sender.to(port, kind, len(body))
            await sender.send(body[: int(len(body) * share)])
            if share == 1.0 or kind != "application/zip":  # of a zip, nothing is begun before its end
                await device.under_way()
            await sender.leave()
            await eventually(lambda: outcomes() - before == {("/predict/batch", "client_gone"): 1})
        await eventually(lambda: held() == resting and queue_depth() == 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert classes(await post(client, FORM_TYPE, form(numbered(100)))) == list(range(100))
    assert len([each for batch in device.batches for each in batch]) <= 100 + 8  # one run was under way


async def test_who_leaves_while_no_more_is_read_is_noticed_when_it_is() -> None:
    device = FakeDevice()
    before = outcomes()
    async with serving_engine(device) as engine, listening(application(engine, max_batch=1)) as port:
        resting = held()
        with stuck(device):
            sender = await Sender.to(port, FORM_TYPE)
            await sender.send(form(numbered(100)))
            await device.under_way()
            await sender.leave()
        await eventually(lambda: outcomes() - before == {("/predict/batch", "client_gone"): 1})
        await eventually(lambda: held() == resting)


async def test_single_pictures_go_before_the_many() -> None:
    device = FakeDevice()
    async with serving_engine(device) as engine, calling(application(engine)) as client:
        with stuck(device):
            many = asyncio.create_task(post(client, FORM_TYPE, form(numbered(100))))
            await device.under_way()
            waiting = 64 - len(device.batches[0])  # so many at once, less those that run
            await eventually(lambda: queue_depth() == waiting)
            single = asyncio.create_task(client.post("/predict", content=png(200)))
            await eventually(lambda: queue_depth() == waiting + 1)
        assert (await single).json()["predictions"][0]["index"] == 200
        assert classes(await many) == list(range(100))
    assert 200 in device.batches[1]


async def test_several_batches_at_once_are_all_answered(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(post(client, *_body(form, 60)) for form in FORMS))
    assert [classes(answer) for answer in answers] == [list(range(60))] * len(FORMS)


def _body(form: str, count: int) -> tuple[str, bytes]:
    kind, pack = FORMS[form]
    return kind, pack(numbered(count))


async def test_memory_stays_flat_however_much_is_uploaded() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="%d"\r\n\r\n%s\r\n'
    picture = png(3) + bytes(500_000)

    async def body(count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            yield part % (number, picture)
        yield b"--b--\r\n"

    async with serving_engine() as engine, calling(application(engine, max_batch=2)) as client:
        await post(client, FORM_TYPE, body(3))
        tracemalloc.start()
        answer = await post(client, FORM_TYPE, body(150))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert classes(answer) == [3] * 150
    assert peak < 15_000_000  # of 75 million bytes


async def test_a_room_lets_in_no_more_than_fits_but_always_one() -> None:
    room = Room(10)
    await room.take(100)
    waiting = [asyncio.create_task(room.take(6)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    room.give_back(100)
    await asyncio.wait(waiting[1:])
    late = asyncio.create_task(room.take(0))
    await asyncio.sleep(0)
    assert not late.done()
    room.give_back(6)
    await late


def test_the_defaults_are_for_thousands_of_photos() -> None:
    settings = Settings()
    assert (settings.batch_max_pictures, settings.batch_max_bytes) == (10_000, 2_000_000_000)
