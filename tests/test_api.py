"""The routes: every form of a picture gets its answer, and nobody suffers from another's."""

import asyncio
import base64
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from calling import application, calling, eventually, listening, outcomes, queue_depth, serving_engine
from fakes import FakeDevice
from PIL import Image
from running import CAT

from service.api import PredictQuery, PredictReply
from service.app import create_app
from service.outputs import Wants
from service.settings import Settings

PICTURE = CAT.read_bytes()


def png(red: int = 0, size: tuple[int, int] = (20, 10)) -> bytes:
    """A picture of the class ``red``, as the device takes it."""
    file = BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine)) as client:
        yield client


BODIES: dict[str, dict[str, Any]] = {
    "raw": {"content": PICTURE, "headers": {"content-type": "image/jpeg"}},
    "raw without a type": {"content": PICTURE},
    "form": {"files": {"file": ("cat.jpg", PICTURE, "image/jpeg")}},
    "base64": {"json": {"image": base64.b64encode(PICTURE).decode()}},
    "data URI": {"json": {"image": f"data:image/jpeg;base64,{base64.b64encode(PICTURE).decode()}"}},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_picture_gets_the_same_answer_in_every_form(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    expected = await client.post("/predict", content=PICTURE)
    answer = await client.post("/predict", **body)
    assert answer.status_code == 200
    assert answer.json()["predictions"] == expected.json()["predictions"]


async def test_the_answer_names_the_model_the_likeliest_labels_and_where_the_time_went(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/predict", content=PICTURE)
    body = answer.json()
    assert body.keys() == {"model", "predictions", "timings_ms"}
    assert all(each.keys() == {"label", "index", "wnid", "score"} for each in body["predictions"])
    scores = [each["score"] for each in body["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert list(body["timings_ms"]) == ["receive", "decode", "queue", "device", "total"]
    timed = [stage.partition(";")[0] for stage in answer.headers["server-timing"].split(", ")]
    assert timed == list(body["timings_ms"])


async def test_the_answer_is_what_is_documented(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict", content=PICTURE)
    told = PredictReply.model_validate_json(answer.content, strict=True)
    assert told.model_dump(exclude_unset=True) == answer.json()
    assert all(each.score == round(each.score, 6) for each in told.predictions)
    document = (await client.get("/openapi.json")).json()["paths"]["/predict"]["post"]
    assert document["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/PredictReply")
    assert [parameter["name"] for parameter in document["parameters"]] == [
        *PredictQuery.model_fields,
        "X-Request-Timeout-Ms",
    ]
    assert "image/*" in document["requestBody"]["content"]


async def test_top_k_and_threshold_choose_what_is_told(client: httpx.AsyncClient) -> None:
    async def predictions(**query: Any) -> list[Any]:
        answer = await client.post("/predict", content=PICTURE, params=query)
        return list(answer.json()["predictions"])

    everything = await predictions(top_k=1000)
    assert await predictions() == everything[:5]
    assert await predictions(top_k=1) == everything[:1]
    assert await predictions(top_k=1000, threshold=1) == []
    assert await predictions(threshold=0.5) == everything[:1]


@pytest.mark.parametrize(
    "query",
    ["top_k=0", "top_k=1001", "top_k=x", "top_k=", "threshold=-0.1", "threshold=1.1", "threshold=nan", "topk=3"],
)
async def test_a_parameter_that_is_unknown_or_out_of_range_is_named(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.post(f"/predict?{query}", content=PICTURE)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_parameter"
    assert answer.json()["detail"].startswith(f"{query.partition('=')[0]}: ")


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


REFUSALS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "nothing": (400, "empty_body", {}),
    "broken JSON": (400, "malformed_body", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "a form without a file": (400, "malformed_body", {"files": {"other": b"x"}}),
    "text": (415, "not_an_image", {"content": b"no picture"}),
    "a type of other things": (415, "unsupported_media_type", {"content": PICTURE, "headers": {"content-type": "a/b"}}),
    "half a picture": (422, "truncated_image", {"content": PICTURE[: len(PICTURE) // 2]}),
    "too long": (413, "too_many_bytes", {"content": bytes(200_001)}),
    "too long, length not said": (413, "too_many_bytes", {"content": _in_pieces(bytes(200_001))}),
    "too large": (413, "too_many_pixels", {"content": png(size=(1000, 1000))}),
}


@pytest.mark.parametrize(("status", "code", "body"), REFUSALS.values(), ids=REFUSALS)
async def test_what_cannot_be_a_picture_is_refused_with_a_stable_code(
    status: int, code: str, body: dict[str, Any]
) -> None:
    before = outcomes()
    limits = {"max_bytes": 200_000, "max_pixels": 500_000}
    async with serving_engine() as engine, calling(application(engine, **limits)) as client:
        answer = await client.post("/predict", **body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json().keys() == {"type", "title", "status", "detail", "code", "request_id"}
    assert (answer.json()["code"], answer.json()["status"]) == (code, status)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert outcomes() - before == {("/predict", code): 1}


async def test_bad_pictures_among_good_ones_disturb_nobody(client: httpx.AsyncClient) -> None:
    bodies = [png(1), PICTURE[:5000], png(2), b"text", png(3), b""]
    answers = await asyncio.gather(*(client.post("/predict", content=body) for body in bodies * 3))
    assert [answer.status_code for answer in answers] == [200, 422, 200, 415, 200, 400] * 3
    found = [answer.json()["predictions"][0]["label"] for answer in answers if answer.status_code == 200]
    assert found == ["class 1", "class 2", "class 3"] * 3


async def test_every_request_is_counted_under_exactly_one_outcome(client: httpx.AsyncClient) -> None:
    before = outcomes()
    sent = [
        client.post("/predict", content=PICTURE),
        client.post("/predict", content=b"text"),
        client.post("/predict?top_k=0"),
        client.get("/predict"),
        client.get("/nothing/of/this/name"),
        client.post("/predict/"),
        client.get("/health"),
        client.get("/health/ready"),
        client.get("/health/live"),
        client.get("/metrics"),
        client.get("/openapi.json"),
    ]
    await asyncio.gather(*sent)
    assert outcomes() - before == {
        ("/predict", "ok"): 1,
        ("/predict", "not_an_image"): 1,
        ("/predict", "invalid_parameter"): 1,
        ("/predict", "method_not_allowed"): 1,
        ("unmatched", "not_found"): 2,
        ("/health", "ok"): 1,
        ("/health/ready", "ok"): 1,
        ("/health/live", "ok"): 1,
        ("/metrics", "ok"): 1,
        ("unmatched", "ok"): 1,  # /openapi.json is no route of ours
    }


async def test_when_the_device_is_stuck_the_answer_comes_in_time_and_the_room_is_free_again() -> None:
    device = FakeDevice()
    async with (
        serving_engine(device) as engine,
        calling(application(engine, timeout_s=0.2, queue_limit=1, max_batch=1)) as client,
    ):
        device.gate.clear()
        for _ in range(8):  # more than there are slots
            answer = await client.post("/predict", content=PICTURE)
            assert answer.status_code == 504
            assert answer.json()["code"] == "deadline_exceeded"
        device.gate.set()
        assert (await client.post("/predict", content=PICTURE)).status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/embed", "/hf", "/predictions/embedded"])
async def test_who_has_less_patience_than_is_allowed_is_answered_sooner(path: str) -> None:
    device = FakeDevice()
    async with serving_engine(device) as engine, calling(application(engine)) as client:
        device.gate.clear()
        running = asyncio.create_task(client.post("/predict", content=PICTURE))
        await device.under_way()
        impatient = await client.post(path, content=PICTURE, headers={"X-Request-Timeout-Ms": "50"})
        assert impatient.status_code == 504
        assert "within 0.05 s" in impatient.text
        device.gate.set()
        assert (await running).status_code == 200
        assert (await client.post(path, content=PICTURE, headers={"X-Request-Timeout-Ms": "30000"})).status_code == 200
    assert len(device.batches) == 2  # what nobody waited for any more was not computed


async def test_more_patience_than_is_allowed_is_what_is_allowed() -> None:
    device = FakeDevice()
    async with serving_engine(device) as engine, calling(application(engine, timeout_s=0.1)) as client:
        device.gate.clear()
        answer = await client.post("/predict", content=PICTURE, headers={"X-Request-Timeout-Ms": "9" * 5000})
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert "within 0.1 s" in answer.json()["detail"]
        device.gate.set()


@pytest.mark.parametrize("told", ["", "0", "-5", "1.5", "1e3", "1 s", "soon"])
@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/embed", "/hf", "/predictions/embedded"])
async def test_a_patience_that_is_no_number_of_milliseconds_is_refused(path: str, told: str) -> None:
    async with serving_engine() as engine, calling(application(engine)) as client:
        answer = await client.post(path, content=PICTURE, headers={"X-Request-Timeout-Ms": told})
        assert answer.status_code == 422
        assert "X-Request-Timeout-Ms: a whole number" in answer.text


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    device = FakeDevice()
    async with serving_engine(device, limit=1) as engine, calling(application(engine)) as client:
        device.gate.clear()
        running = asyncio.create_task(client.post("/predict", content=PICTURE))
        await device.under_way()
        waiting = asyncio.create_task(client.post("/predict", content=PICTURE))
        await eventually(lambda: queue_depth() == 1)
        refused = await client.post("/predict", content=PICTURE)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        device.gate.set()
        assert [(await request).status_code for request in (running, waiting)] == [200, 200]


class Caller:
    """A connection that has sent a picture, or a part of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int, body: bytes = PICTURE) -> "Caller":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PICTURE)}\r\n\r\n".encode() + body)
        await writer.drain()
        return cls(reader, writer)

    async def status(self) -> int:
        line = await self.reader.readline()
        self.writer.close()
        return int(line.split()[1])

    async def leave(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_who_leaves_while_waiting_is_not_computed_and_the_others_are_answered() -> None:
    device = FakeDevice()
    before = outcomes()
    async with serving_engine(device) as engine, listening(application(engine)) as port:
        device.gate.clear()
        first = await Caller.to(port)
        await device.under_way()
        leaving, staying = await Caller.to(port), await Caller.to(port)
        await eventually(lambda: queue_depth() == 2)
        await leaving.leave()
        await eventually(lambda: (outcomes() - before)["/predict", "client_gone"] == 1)
        device.gate.set()
        assert [await first.status(), await staying.status()] == [200, 200]
    assert sum(len(batch) for batch in device.batches) == 2
    assert outcomes() - before == {("/predict", "client_gone"): 1, ("/predict", "ok"): 2}


async def test_who_leaves_while_sending_is_counted_as_gone() -> None:
    before = outcomes()
    async with serving_engine() as engine, listening(application(engine)) as port:
        caller = await Caller.to(port, PICTURE[:1000])
        await caller.leave()
        await eventually(lambda: outcomes() - before)
        assert await (await Caller.to(port)).status() == 200
    assert outcomes() - before == {("/predict", "client_gone"): 1, ("/predict", "ok"): 1}


async def test_who_leaves_while_their_picture_is_on_the_device_leaves_no_trace() -> None:
    device = FakeDevice()
    before = outcomes()
    async with serving_engine(device) as engine, listening(application(engine)) as port:
        device.gate.clear()
        caller = await Caller.to(port)
        await device.under_way()
        await caller.leave()
        await eventually(lambda: outcomes() - before)
        device.gate.set()
        assert await (await Caller.to(port)).status() == 200
    assert outcomes() - before == {("/predict", "client_gone"): 1, ("/predict", "ok"): 1}


# Evidence


async def test_the_evidence_tells_where_each_label_is(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict?evidence=true&top_k=2", content=png(red=6, size=(20, 10)))
    body = answer.json()
    assert PredictReply.model_validate_json(answer.content, strict=True)
    assert body["region"] == [0.25, 0.0, 0.75, 1.0]  # the middle square of a picture twice as wide as high
    first, second = body["predictions"]
    assert (first["index"], second["index"]) == (6, 1)
    for each in (first, second):
        assert each["evidence"]["patch"] == {"row": 1, "column": 2}  # of 4 x 4: the sixth, as the fake device has it
        assert each["evidence"]["box"] == [0.5, 0.25, 0.625, 0.5]
        assert np.array(each["evidence"]["map"]).argmax() == 6
        assert "overlay" not in each["evidence"]


async def test_the_evidence_is_drawn_if_that_is_asked_for(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict?evidence=true&overlay=true&top_k=1", content=png(red=6))
    head, _, data = answer.json()["predictions"][0]["evidence"]["overlay"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(BytesIO(base64.b64decode(data))).size == (8, 8)  # the model's


async def test_evidence_is_for_labels_above_the_threshold(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict?evidence=true&threshold=0.5", content=png(red=6))
    assert [each["index"] for each in answer.json()["predictions"]] == [6]


async def test_without_being_asked_for_nothing_is_said_of_evidence() -> None:
    device = FakeDevice()
    async with serving_engine(device) as engine, calling(application(engine)) as client:
        answer = await client.post("/predict", content=png(red=6))
        assert "region" not in answer.json()
        assert "evidence" not in answer.json()["predictions"][0]
    assert device.wants == [Wants.NONE]


@pytest.mark.parametrize("query", ["evidence=true&top_k=11", "overlay=true", "evidence=perhaps"])
async def test_what_evidence_cannot_be_asked_for_is_said(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.post(f"/predict?{query}", content=png())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


# Several models


async def test_a_model_is_chosen_by_its_name_and_the_first_answers_otherwise() -> None:
    one, other = FakeDevice(), FakeDevice()
    async with serving_engine(one) as first, serving_engine(other) as second:
        app = create_app(Settings(models="a,b"), {"a": first, "b": second})
        async with calling(app) as client:
            for query in ("", "?model=a", "?model=b"):
                assert (await client.post(f"/predict{query}", content=png(7))).status_code == 200
            unknown = await client.post("/predict?model=c", content=png(7))
    assert (len(one.batches), len(other.batches)) == (2, 1)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")
    assert "there is a, b" in unknown.json()["detail"]
