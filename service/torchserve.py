"""TorchServe's REST interface, for those who served images with it (https://docs.pytorch.org/serve/rest_api.html).

TorchServe is no longer maintained. Its ``image_classifier`` answers ``{"label": score, ...}``, and so does this.
"""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from models.prediction import Prediction
from service.accounting import Record
from service.api import PICTURE_BODY
from service.dialects import ModelName, documented_in, readiness, speaking
from service.errors import ServiceError
from service.inference import Models
from service.patience import Patience
from service.problems import INFERRING, READING, documented, exemplified
from service.settings import Settings
from service.uploads import read_picture

TOP_K = 5
"""As many labels as TorchServe's handler answers."""


class Ping(BaseModel):
    status: Literal["Healthy", "Unhealthy"] = Field(description="Unhealthy goes with the status 503.")


class ModelEntry(BaseModel):
    modelName: str = Field(examples=["embedded"])
    modelUrl: str = Field(examples=["embedded"])


class ModelList(BaseModel):
    models: list[ModelEntry]


def _words(error: ServiceError, status: int) -> dict[str, Any]:
    return {"code": status, "type": type(error).__name__, "message": error.detail}


ERRORS = documented_in(_words, *READING, *INFERRING)


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The routes of TorchServe's inference and management interfaces that clients ask."""
    router = APIRouter(tags=["TorchServe"], route_class=speaking(_words))

    @router.api_route(
        "/predictions/{model}",
        methods=["POST", "PUT"],
        summary="Name what is in a picture",
        response_description="Each label with its score, the likeliest first.",
        responses={**exemplified({"espresso": 0.138267, "pretzel": 0.069649}), **ERRORS},
        openapi_extra=PICTURE_BODY,
    )
    async def predict(model: ModelName, request: Request) -> dict[str, float]:
        record: Record = request.state.record
        async with Patience(settings.timeout_s) as patience:
            with record.stage("receive"):
                picture = await read_picture(request, settings.max_bytes, field=None)
            patience.watch(request)
            inference = await models.infer(picture, record, model)
        return by_label(inference.top(TOP_K))

    @router.get(
        "/ping",
        tags=["health"],
        summary="Whether a picture sent now would be answered",
        response_model=Ping,
        response_description="It would.",
        responses={**documented(), 503: {"model": Ping, "description": "It would not."}},
    )
    async def ping(request: Request) -> Response:
        healthy = not models.ailments()
        return readiness(request, healthy, {"status": "Healthy" if healthy else "Unhealthy"})

    @router.get(
        "/models",
        summary="The models that are served",
        response_description="Their names.",
        responses=documented(),
    )
    async def list_models() -> ModelList:
        return ModelList(models=[ModelEntry(modelName=name, modelUrl=name) for name in models.names])

    return router


def by_label(found: list[Prediction]) -> dict[str, float]:
    """Scores by label. Of two classes that are called alike, as ImageNet's cranes, the second says its index too."""
    told: dict[str, float] = {}
    for each in found:
        told[f"{each.label} ({each.index})" if each.label in told else each.label] = each.score
    return told
