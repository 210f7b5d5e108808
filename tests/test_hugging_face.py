"""The real client of Hugging Face, against a real server."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from calling import application, calling, listening, outcomes, serving_engine
from fakes import CLASSES
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from running import CAT

PICTURE = CAT.read_bytes()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving_engine() as engine, listening(application(engine)) as port:
        yield port


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine)) as client:
        yield client


@pytest.mark.parametrize("address", ["hf", "hf/embedded"])
@pytest.mark.parametrize("parameters", [{}, {"top_k": 3}, {"top_k": 2, "function_to_apply": "softmax"}])
async def test_the_client_classifies_a_picture(port: int, address: str, parameters: dict[str, Any]) -> None:
    client = InferenceClient(model=f"http://127.0.0.1:{port}/{address}")
    found = await asyncio.to_thread(client.image_classification, str(CAT), **parameters)
    assert len(found) == parameters.get("top_k", 5)
    assert found[0].score == pytest.approx(0.9, abs=1e-5)


async def test_the_client_is_told_what_was_wrong(port: int) -> None:
    client = InferenceClient(model=f"http://127.0.0.1:{port}/hf")
    with pytest.raises(HfHubHTTPError, match="not a picture that can be read"):
        await asyncio.to_thread(client.image_classification, b"no picture at all")


async def test_it_answers_what_predict_answers(client: httpx.AsyncClient) -> None:
    expected = (await client.post("/predict", content=PICTURE)).json()["predictions"]
    found = (await client.post("/hf", content=PICTURE)).json()
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-5)


@pytest.mark.parametrize(("function", "score"), [("softmax", 0.9), ("sigmoid", 0.9 / 1.9), ("none", -0.10536)])
async def test_the_scores_are_made_as_asked_for(client: httpx.AsyncClient, function: str, score: float) -> None:
    body = {"inputs": base64.b64encode(PICTURE).decode(), "parameters": {"function_to_apply": function, "top_k": 1000}}
    found = (await client.post("/hf", json=body)).json()
    assert len(found) == CLASSES
    assert found[0]["score"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"json": {"inputs": "!"}}, 400),
        ({"json": {"inputs": "https://example.com/cat.jpg"}}, 400),
        ({"json": {"inputs": "", "parameters": {"top_k": 0}}}, 400),
        ({"json": {"inputs": ""}}, 400),
        ({"content": b""}, 400),
        ({"content": b"no picture"}, 415),
        ({"content": PICTURE, "headers": {"content-type": "text/plain"}}, 415),
    ],
)
async def test_errors_are_told_in_its_words(client: httpx.AsyncClient, body: dict[str, Any], status: int) -> None:
    answer = await client.post("/hf", **body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "code"}
    assert outcomes()["/hf", answer.json()["code"]] >= 1


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.post("/hf/nothing", content=PICTURE)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
