"""Hugging Face's image classification, as ``huggingface_hub.InferenceClient`` asks for it.

The client sends the picture itself, or with parameters ``{"inputs": "<base64>", "parameters": {...}}``
(https://huggingface.co/docs/inference-providers/tasks/image-classification).
"""

from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.prediction import top
from service.accounting import Record
from service.api import A_PICTURE
from service.dialects.words import ModelName, documented_in, inlined, speaking
from service.errors import ServiceError
from service.inference import Inference, Models
from service.patience import PARAMETERS, Patience
from service.problems import INFERRING, READING
from service.settings import Settings
from service.uploads import checked, from_base64, parsed, read_body, read_picture, taken_apart

_JSON = 'A JSON body must be {"inputs": "<base64>", "parameters": {"top_k": 5, "function_to_apply": "softmax"}}.'


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1, le=1000, description="How many labels at most.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] = Field(
        "softmax", description="What makes scores of the model's logits."
    )


class Asked(BaseModel):
    inputs: str = Field(
        description="The picture, as base64 or as a data URI.",
        json_schema_extra={"format": "byte", "minLength": 1, "example": A_PICTURE},
    )
    parameters: Parameters = Parameters()


class LabelScore(BaseModel):
    label: str = Field(examples=["espresso"])
    score: float = Field(examples=[0.138267])


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": inlined(Asked)},
        },
    }
}


def _words(error: ServiceError, status: int) -> dict[str, Any]:
    return {"error": error.detail, "code": error.code}


ERRORS = documented_in(_words, *READING, *INFERRING)


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The routes of the Hugging Face Inference API."""
    router = APIRouter(tags=["Hugging Face"], route_class=speaking(_words))
    documentation: dict[str, Any] = {
        "responses": ERRORS,
        "response_description": "The likeliest labels.",
        "openapi_extra": {**BODY, **PARAMETERS},
    }

    @router.post("/hf/{model}", summary="Name what is in a picture, by this model", **documentation)
    async def classify_by(model: ModelName, request: Request) -> list[LabelScore]:
        return await _classify(request, models, settings, model)

    @router.post("/hf", summary="Name what is in a picture", **documentation)
    async def classify(request: Request) -> list[LabelScore]:
        """Give this address to `huggingface_hub.InferenceClient` as its model."""
        return await _classify(request, models, settings, None)

    return router


async def _classify(request: Request, models: Models, settings: Settings, model: str | None) -> list[LabelScore]:
    record: Record = request.state.record
    async with Patience.of(request, settings.timeout_s) as patience:
        models.knock(record, model)
        with record.stage("receive"):
            picture, parameters = await _read(request, settings)
        patience.watch(request)
        inference = await models.infer(picture, record, model)
    scores = _scores(inference, parameters)
    return [
        LabelScore(label=each.label, score=each.score)
        for each in top(scores, inference.card.labels, parameters.top_k, threshold=-np.inf)
    ]


async def _read(request: Request, settings: Settings) -> tuple[bytes, Parameters]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return await read_picture(request, settings.max_bytes), Parameters()
    body = await read_body(request, settings.max_bytes, encoded=True)
    picture, parameters = await taken_apart(body, _from_json)
    return checked(picture, settings.max_bytes), parameters


def _from_json(body: bytes) -> tuple[bytes, Parameters]:
    asked = parsed(Asked, body, _JSON)
    return from_base64(asked.inputs), asked.parameters


def _scores(inference: Inference, parameters: Parameters) -> NDArray[np.float32]:
    match parameters.function_to_apply:
        case "softmax":
            return inference.scores
        case "sigmoid":
            return np.asarray(1 / (1 + np.exp(-inference.logits)), np.float32)
        case "none":
            return inference.logits
