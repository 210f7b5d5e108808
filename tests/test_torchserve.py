"""TorchServe's interface: what its clients send, and what they expect to read."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from calling import application, calling, outcomes, serving_engine
from running import CAT

from models.prediction import Prediction
from service.torchserve import by_label

PICTURE = CAT.read_bytes()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine)) as client:
        yield client


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("POST", {"content": PICTURE}),
    ("PUT", {"content": PICTURE}),  # as `curl -T cat.jpg` does
    ("POST", {"files": {"data": ("cat.jpg", PICTURE)}}),  # as `curl -F data=@cat.jpg` does
    ("POST", {"files": {"body": ("cat.jpg", PICTURE)}}),
]


@pytest.mark.parametrize(("method", "body"), BODIES)
async def test_a_picture_gets_five_labels_with_their_scores(
    client: httpx.AsyncClient, method: str, body: dict[str, Any]
) -> None:
    expected = (await client.post("/predict", content=PICTURE)).json()["predictions"]
    answer = await client.request(method, "/predictions/embedded", **body)
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
        "type": "UnknownModel",
        "message": "No model 'nothing' is served; there is embedded.",
    }
    bad = await client.post("/predictions/embedded", content=b"no picture")
    assert (bad.status_code, bad.json()["code"]) == (415, 415)
    assert outcomes()["/predictions/{model}", "not_an_image"] >= 1


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
