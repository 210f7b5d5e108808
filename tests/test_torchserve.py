"""TorchServe's interface: what its clients send, and what they expect to read."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from calling import application, calling, outcomes, serving_engine
from running import CAT

from models.prediction import Prediction
from service.dialects.torchserve import by_label

PICTURE = CAT.read_bytes()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine)) as client:
        yield client


PATHS = ["/predictions/embedded", "/predictions/embedded/1.0"]

BODIES: list[tuple[str, dict[str, Any]]] = [
    ("POST", {"content": PICTURE}),
    ("PUT", {"content": PICTURE}),  # as `curl -T cat.jpg` does
    ("POST", {"files": {"data": ("cat.jpg", PICTURE)}}),  # as `curl -F data=@cat.jpg` does
    ("POST", {"files": {"body": ("cat.jpg", PICTURE)}}),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("method", "body"), BODIES)
async def test_a_picture_gets_five_labels_with_their_scores(
    client: httpx.AsyncClient, path: str, method: str, body: dict[str, Any]
) -> None:
    expected = (await client.post("/predict", content=PICTURE)).json()["predictions"]
    answer = await client.request(method, path, **body)
    assert answer.status_code == 200
    assert list(answer.json()) == [each["label"] for each in expected]
    assert list(answer.json().values()) == pytest.approx([each["score"] for each in expected], abs=1e-5)


def test_two_classes_that_are_called_alike_are_both_told() -> None:
    found = [Prediction("crane", 134, "n02012849", 0.5), Prediction("crane", 517, "n03126707", 0.25)]
    assert by_label(found) == {"crane": 0.5, "crane (517)": 0.25}


async def test_errors_are_told_in_its_words(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/predictions/nothing", content=PICTURE)
    assert unknown.status_code == 404
    assert unknown.json() == {
        "code": 404,
        "type": "ModelNotFoundException",
        "message": "No model 'nothing' is served; there is embedded.",
    }
    bad = await client.post("/predictions/embedded", content=b"no picture")
    assert (bad.status_code, bad.json()["code"], bad.json()["type"]) == (415, 415, "BadRequestException")
    assert outcomes()["/predictions/{model}", "not_an_image"] >= 1


async def test_a_form_may_call_its_one_file_anything(client: httpx.AsyncClient) -> None:
    two = {"data": ("cat.jpg", PICTURE), "body": ("cat.jpg", PICTURE)}
    answer = await client.post("/predictions/embedded", files=two)
    assert (answer.status_code, answer.json()["message"]) == (
        400,
        "A form must hold one file and nothing else, as curl -F data=@cat.jpg sends it.",
    )


async def test_there_is_no_other_version(client: httpx.AsyncClient) -> None:
    for answer in (
        await client.post("/predictions/embedded/2.0", content=PICTURE),
        await client.get("/models/embedded/2.0"),
        await client.get("/models/nothing"),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException")


async def test_nothing_is_available_until_the_engine_is_there(tmp_path: Path) -> None:
    async with calling(application(tmp_path / "engine.sock"), ready=False) as client:
        answer = await client.post("/predictions/embedded", content=PICTURE)
        assert (answer.status_code, answer.json()["type"]) == (503, "ServiceUnavailableException")
        assert int(answer.headers["retry-after"]) >= 1
        (described,) = (await client.get("/models/embedded")).json()
        assert described["workers"] == [{"id": "0", "status": "LOADING", "gpu": False}]


async def test_a_model_is_described_as_its_clients_read_it(client: httpx.AsyncClient) -> None:
    for path in ("/models/embedded", "/models/embedded/1.0"):
        (described,) = (await client.get(path)).json()
        assert (described["modelName"], described["modelVersion"]) == ("embedded", "1.0")
        assert described["workers"] == [{"id": "0", "status": "READY", "gpu": False}]


async def test_it_is_healthy_when_pictures_would_be_answered(client: httpx.AsyncClient, tmp_path: Path) -> None:
    answer = await client.get("/ping")
    assert (answer.status_code, answer.json()) == (200, {"status": "Healthy"})
    async with calling(application(tmp_path / "engine.sock"), ready=False) as lonely:
        answer = await lonely.get("/ping")
        assert (answer.status_code, answer.json()) == (503, {"status": "Unhealthy"})


async def test_it_lists_its_models_and_says_nothing_of_their_files(tmp_path: Path) -> None:
    app = application(tmp_path / "engine.sock", models=f"pets={tmp_path}/pets.safetensors,embedded")
    async with calling(app, ready=False) as client:
        assert (await client.get("/models")).json() == {
            "models": [
                {"modelName": "pets", "modelUrl": "pets"},
                {"modelName": "embedded", "modelUrl": "embedded"},
            ]
        }
