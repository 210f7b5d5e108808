"""TorchServe's REST interface, for those who served images with it (https://docs.pytorch.org/serve/rest_api.html).

TorchServe is no longer maintained. Its ``image_classifier`` answers ``{"label": score, ...}``, and so does this.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, Field

from models.prediction import Prediction
from service.accounting import Record
from service.api import PICTURE_BODY
from service.dialects.words import ModelName, documented_in, speaking
from service.errors import ServiceError, UnknownModel
from service.health import readiness
from service.inference import Models
from service.patience import PARAMETERS, Patience
from service.problems import INFERRING, READING, documented, exemplified
from service.settings import Settings
from service.uploads import read_picture

VERSION = "1.0"
"""Of each model: there is only the one that is loaded."""
TOP_K = 5
"""As many labels as TorchServe's handler answers."""


class Ping(BaseModel):
    status: Literal["Healthy", "Unhealthy"] = Field(description="Unhealthy goes with the status 503.")


class ModelEntry(BaseModel):
    modelName: str = Field(examples=["embedded"])
    modelUrl: str = Field(examples=["embedded"])


class ModelList(BaseModel):
    models: list[ModelEntry]


class Worker(BaseModel):
    id: str = Field(examples=["0"])
    status: Literal["READY", "LOADING"]
    gpu: bool


class ModelDescription(ModelEntry):
    modelVersion: str = Field(examples=[VERSION])
    runtime: str = Field(examples=["python"])
    loadedAtStartup: bool
    minWorkers: int
    maxWorkers: int
    batchSize: int = Field(description="Most pictures in one run of the model.")
    workers: list[Worker]


def _words(error: ServiceError, status: int) -> dict[str, Any]:
    usual = "InternalServerException" if status >= 500 else "BadRequestException"
    return {"code": status, "type": TYPES.get(status, usual), "message": error.detail}


TYPES = {401: "InvalidKeyException", 404: "ModelNotFoundException", 503: "ServiceUnavailableException"}
"""What TorchServe calls an error that has this status, unless it is just the caller's or the server's fault."""
ERRORS = documented_in(_words, *READING, *INFERRING)


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The routes of TorchServe's inference and management interfaces that clients ask."""
    router = APIRouter(tags=["TorchServe"], route_class=speaking(_words))

    this_version = [Depends(_check_version)]
    prediction: dict[str, Any] = {
        "methods": ["POST", "PUT"],
        "summary": "Name what is in a picture",
        "response_description": "Each label with its score, the likeliest first.",
        "responses": {**exemplified({"espresso": 0.138267, "pretzel": 0.069649}), **ERRORS},
        "openapi_extra": {**PICTURE_BODY, **PARAMETERS},
    }

    @router.api_route("/predictions/{model}", **prediction)
    @router.api_route("/predictions/{model}/{version}", dependencies=this_version, **prediction)
    async def predict(model: ModelName, request: Request) -> dict[str, float]:
        record: Record = request.state.record
        async with Patience.of(request, settings.timeout_s) as patience:
            models.knock(record, model)
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

    description: dict[str, Any] = {
        "summary": "What is known of a model",
        "response_description": "A list of one: there is one version.",
        "responses": documented_in(_words, UnknownModel),
    }

    @router.get("/models/{model}", **description)
    @router.get("/models/{model}/{version}", dependencies=this_version, **description)
    async def describe(model: ModelName) -> list[ModelDescription]:
        card = models.link(model).card
        on_gpu = card is not None and card.device.startswith("cuda")
        return [_description(model, models.ailments(model), on_gpu, settings.max_batch)]

    return router


async def _check_version(
    model: ModelName, version: Annotated[str, Path(description=f"There is the version {VERSION}.")]
) -> None:
    if version != VERSION:
        raise UnknownModel(f"The model {model!r:.80} has only the version {VERSION}.")


def _description(model: str, ailments: Sequence[str], on_gpu: bool, max_batch: int) -> ModelDescription:
    return ModelDescription(
        modelName=model,
        modelUrl=model,
        modelVersion=VERSION,
        runtime="python",
        loadedAtStartup=True,
        minWorkers=1,
        maxWorkers=1,
        batchSize=max_batch,
        workers=[Worker(id="0", status="LOADING" if ailments else "READY", gpu=on_gpu)],
    )


def by_label(found: list[Prediction]) -> dict[str, float]:
    """Scores by label. Of two classes that are called alike, as ImageNet's cranes, the second says its index too."""
    told: dict[str, float] = {}
    for each in found:
        told[f"{each.label} ({each.index})" if each.label in told else each.label] = each.score
    return told
