"""The routes and what goes over the wire."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.prediction import Prediction, top
from models.preprocess import crop
from service import metrics
from service.accounting import Record
from service.errors import InvalidParameter
from service.images import decode, decode_reduced, enough_for
from service.link import Link
from service.patience import Patience
from service.settings import Settings
from service.uploads import read_picture
from service.wire import ModelCard


class PredictQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1, le=1000, description="How many labels at most.")
    threshold: float = Field(0.0, ge=0.0, le=1.0, allow_inf_nan=False, description="Least score of a label.")


class PredictedLabel(BaseModel):
    label: str = Field(description="What people call it.")
    index: int = Field(description="The class's place in the model's list.")
    wnid: str | None = Field(description="The class's WordNet id, where it is known.")
    score: float = Field(description="How probable it is, 0 to 1, to six digits.")


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


class PredictRoute(APIRoute):
    """Documented like any other, but served without FastAPI's own handling of parameters and answers, which takes
    110 us of CPU a request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            response: Response = await self.endpoint(request, predict_query(request))
            return response

        return handle


def create_router(engine: Link, settings: Settings) -> APIRouter:
    """The service's routes, over one engine."""
    router = APIRouter()

    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """Name what is in a picture: the raw body, a form's `file`, or base64 in JSON."""
        record: Record = request.state.record
        async with Patience(settings.timeout_s) as patience:
            with record.stage("receive"):
                picture = await read_picture(request, settings.max_bytes)
            patience.watch(request)
            card, scores = await _score(engine, picture, record, settings)
        found = top(scores, card.labels, query.top_k, query.threshold)
        return Response(predict_reply(card.model, found, record), media_type="application/json")

    router.add_api_route(
        "/predict",
        predict,
        methods=["POST"],
        response_model=PredictReply,
        openapi_extra=PICTURE_BODY,
        route_class_override=PredictRoute,
    )

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


def predict_query(request: Request) -> PredictQuery:
    """What the request's query says.

    Raises:
        InvalidParameter: it says what it may not.
    """
    if not request.scope["query_string"]:
        return _DEFAULT_QUERY
    try:
        return PredictQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        wrong = [f"{fault['loc'][-1]}: {fault['msg']} (got {fault['input']!r:.50})" for fault in error.errors()]
        raise InvalidParameter("; ".join(wrong)) from None


_DEFAULT_QUERY = PredictQuery()


def predict_reply(model: str, found: list[Prediction], record: Record) -> bytes:
    """A ``PredictReply`` as JSON."""
    predictions = [
        {"label": each.label, "index": each.index, "wnid": each.wnid, "score": round(each.score, 6)} for each in found
    ]
    return orjson.dumps({"model": model, "predictions": predictions, "timings_ms": record.timings_ms()})


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
            card = await engine.load(slot, partial(load_crop, picture, settings))
        answer = await engine.classify(slot, record.arrival_s + settings.timeout_s)
        record.stages.update(queue=answer.queue_s, device=answer.device_s)
        return card, slot.scores.copy()


def load_crop(picture: bytes, settings: Settings, pixels: NDArray[np.uint8], card: ModelCard) -> None:
    """Decode a picture and write its crop into a slot's pixels."""
    size, part = card.image_size, card.crop_pct
    if settings.decode == "exact":
        crop(decode(picture, settings.max_pixels), size, part, out=pixels)
    else:
        image, extent = decode_reduced(picture, settings.max_pixels, enough_for(size, part))
        crop(image, size, part, out=pixels, within=extent)
