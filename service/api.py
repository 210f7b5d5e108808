"""The routes and what goes over the wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from models.prediction import top
from models.preprocess import crop
from service import metrics
from service.accounting import Record
from service.errors import ClientGone, DeadlineExceeded
from service.images import decode
from service.link import Link
from service.settings import Settings
from service.uploads import read_picture
from service.wire import ModelCard


def _six_digits(score: float) -> float:
    return round(score, 6)


class PredictQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1, le=1000, description="How many labels at most.")
    threshold: float = Field(0.0, ge=0.0, le=1.0, allow_inf_nan=False, description="Least score of a label.")


class PredictedLabel(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    label: str = Field(description="What people call it.")
    index: int = Field(description="The class's place in the model's list.")
    wnid: str | None = Field(description="The class's WordNet id, where it is known.")
    score: Annotated[float, AfterValidator(_six_digits)] = Field(description="How probable it is, 0 to 1.")


class PredictReply(BaseModel):
    model: str = Field(description="Which model answered.")
    predictions: list[PredictedLabel] = Field(description="The likeliest first.")
    timings_ms: dict[str, float] = Field(description="Milliseconds in each stage, and in all until the answer.")


class Health(BaseModel):
    status: str
    reasons: list[str] = Field([], description="Why it is not ready; empty if it is.")
    model: str | None = None
    device: str | None = None


PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "description": "Base64, or a data URI of it."}},
                }
            },
        },
    }
}


def create_router(engine: Link, settings: Settings) -> APIRouter:
    """The service's routes, over one engine."""
    router = APIRouter()

    @router.post("/predict", openapi_extra=PICTURE_BODY)
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> PredictReply:
        """Name what is in a picture: the raw body, a form's `file`, or base64 in JSON."""
        record: Record = request.state.record
        try:
            async with asyncio.timeout(settings.timeout_s):
                with record.stage("receive"):
                    picture = await read_picture(request, settings.max_bytes)
                async with while_there(request):
                    card, scores = await _score(engine, picture, record, settings)
        except TimeoutError:
            raise DeadlineExceeded(f"The answer was not ready within {settings.timeout_s:g} s.") from None
        found = top(scores, card.labels, query.top_k, query.threshold)
        labels = [PredictedLabel.model_validate(prediction) for prediction in found]
        return PredictReply(model=card.model, predictions=labels, timings_ms=record.timings_ms())

    @router.get("/health/live")
    async def live() -> Health:
        """This process can answer."""
        return Health(status="live")

    @router.get("/health/ready", response_model=Health, responses={503: {"model": Health}})
    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def ready(request: Request) -> Response:
        """A picture sent now would be answered: the model is loaded, warm, and lately gave a right answer."""
        health = _health(engine, request.app.state.draining)
        if health.reasons:
            request.state.record.outcome = "not_ready"
        return JSONResponse(health.model_dump(), 503 if health.reasons else 200)

    @router.get("/metrics", response_class=Response)
    def exposition() -> Response:
        """Prometheus' text format, all processes in one."""
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    return router


def _health(engine: Link, draining: bool) -> Health:
    reasons = ["the service is shutting down"] * draining + engine.ailments()
    health = Health(status="not ready" if reasons else "ready", reasons=reasons)
    if engine.card:
        health.model, health.device = engine.card.model, engine.card.device
    return health


async def _score(
    engine: Link, picture: bytes, record: Record, settings: Settings
) -> tuple[ModelCard, NDArray[np.float32]]:
    """Decode, crop and score a picture, through a slot shared with the engine."""
    with engine.slot() as slot:
        with record.stage("decode"):
            card = await engine.load(slot, partial(load_crop, picture, settings.max_pixels))
        answer = await engine.classify(slot, record.arrival_s + settings.timeout_s)
        record.stages.update(queue=answer.queue_s, device=answer.device_s)
        return card, slot.scores.copy()


def load_crop(picture: bytes, max_pixels: int, pixels: NDArray[np.uint8], card: ModelCard) -> None:
    """Decode a picture and write its crop into a slot's pixels."""
    crop(decode(picture, max_pixels), card.image_size, card.crop_pct, out=pixels)


@asynccontextmanager
async def while_there(request: Request) -> AsyncIterator[None]:
    """Go on with what is within for as long as the caller of a fully read request is there.

    Raises:
        ClientGone: they left before it was done.
    """

    async def watch() -> None:
        await request.receive()  # after the body, all that can come is the disconnection
        presence.reschedule(0)

    try:
        async with asyncio.timeout(None) as presence:
            watching = asyncio.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        raise ClientGone("The caller left before the answer.") from None
