"""Pictures as vectors."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from calling import application, calling, serving_engine
from fakes import FakeDevice
from running import CAT

import models
from service.embeddings import EmbedReply
from service.images import decode
from service.outputs import Wants

PICTURE = CAT.read_bytes()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine)) as client:
        yield client


BODIES: list[dict[str, Any]] = [
    {"content": PICTURE},
    {"files": {"file": ("cat.jpg", PICTURE)}},
    {"json": {"image": base64.b64encode(PICTURE).decode()}},
]


@pytest.mark.parametrize("body", BODIES)
async def test_a_picture_becomes_its_features(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    first = (await client.post("/predict", content=PICTURE)).json()["predictions"][0]["index"]
    answer = await client.post("/embed", **body)
    reply = EmbedReply.model_validate_json(answer.content)
    assert (reply.model, reply.dimension) == ("fake", 3)
    assert reply.embedding == [first] * 3  # as the fake device has it
    assert list(reply.timings_ms) == ["receive", "decode", "queue", "device", "total"]


async def test_normalised_it_has_the_length_one(client: httpx.AsyncClient) -> None:
    embedding = (await client.post("/embed?normalize=true", content=PICTURE)).json()["embedding"]
    assert np.linalg.norm(embedding) == pytest.approx(1)


async def test_only_the_features_are_asked_for() -> None:
    device = FakeDevice()
    async with serving_engine(device) as engine, calling(application(engine)) as client:
        assert (await client.post("/embed", content=PICTURE)).status_code == 200
    assert device.wants == [Wants.FEATURES]


async def test_errors_are_those_of_predict(client: httpx.AsyncClient) -> None:
    bad = await client.post("/embed", content=b"no picture")
    assert (bad.status_code, bad.json()["code"]) == (415, "not_an_image")
    unknown = await client.post("/embed?model=nothing", content=PICTURE)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")


def test_the_real_models_features_are_what_its_head_reads() -> None:
    classifier = models.load_model("embedded", precision="float32")
    crops = torch.from_numpy(classifier.crop(decode(PICTURE, 10**8)))[None]
    seen = classifier.see(crops)
    with torch.inference_mode():
        said = classifier.model.head(classifier.features(seen))
        rest = 0.5 * classifier.model.aux_head(seen.tokens[:, 1:]).amax(dim=1)
    torch.testing.assert_close(said + rest, seen.logits)
