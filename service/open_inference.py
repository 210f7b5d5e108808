"""The Open Inference Protocol v2, which KServe and Triton speak, with Triton's classification and binary tensors.

The one input, ``image``, holds encoded pictures as BYTES [N] (in JSON as base64), or pixels as UINT8 [N, H, W, 3].
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Request, Response

from models.prediction import top
from service.accounting import Record
from service.api import A_PICTURE
from service.dialects import ModelName, documented_in, inlined, readiness, speaking
from service.errors import EngineUnavailable, InvalidParameter, MalformedBody, ServiceError, TooManyPixels, UnknownModel
from service.images import MAX_SIDE
from service.inference import Inference, Models, Picture
from service.open_inference_messages import (
    REPLY,
    InferReply,
    InferRequest,
    Live,
    Metadata,
    ModelReady,
    ModelState,
    Ready,
    RequestedOutput,
    Server,
)
from service.patience import Patience
from service.problems import INFERRING, READING, documented
from service.settings import Settings
from service.tensors import (
    HEADER_LENGTH,
    OutputTensor,
    Received,
    encode,
    pixels,
    receive,
    texts,
)
from service.uploads import checked, from_base64, read_body

VERSION = "1"
"""Of each model: there is only the one that is loaded."""
PICTURES_IN_BYTES = 4
"""A request may be so many times as large as a picture."""
DEFAULT_OUTPUTS = [RequestedOutput(name="labels"), RequestedOutput(name="indices"), RequestedOutput(name="scores")]
DEFAULT_TOP_K = 5

_EXAMPLE = {
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [A_PICTURE]}],
    "parameters": {"top_k": 2},
}

INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": inlined(InferRequest), "example": _EXAMPLE},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def _words(error: ServiceError, status: int) -> dict[str, Any]:
    return {"error": error.detail}


_MODEL_ERRORS = documented_in(_words, UnknownModel, EngineUnavailable)
_READY: dict[str, Any] = {
    "summary": "Whether the model would answer a request that came now",
    "response_model": ModelReady,
    "response_description": "It would.",
    "responses": {
        **documented_in(_words, UnknownModel),
        503: {"model": ModelReady, "description": "It would not."},
    },
}
_INFER: dict[str, Any] = {
    "summary": "Name what is in some pictures",
    "response_model": InferReply,
    "response_description": "The outputs that were asked for; binary ones follow the JSON.",
    "responses": {
        200: {
            "content": {
                "application/json": {"example": REPLY},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
            "headers": {
                HEADER_LENGTH: {
                    "description": "How much of a body with binary tensors is JSON.",
                    "schema": {"type": "integer"},
                }
            },
        },
        **documented_in(_words, InvalidParameter, *READING, *INFERRING),
    },
    "openapi_extra": INFER_BODY,
}


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The routes of the protocol."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=speaking(_words))
    this_version = [Depends(_check_version)]

    @router.get(
        "",
        summary="What serves here",
        response_model=Server,
        response_description="Name, version and extensions.",
        responses=documented(),
    )
    async def server() -> dict[str, Any]:
        """Its `extensions` are what it can beyond the protocol."""
        extensions = ["classification", "binary_tensor_data", "model_repository"]
        return {"name": "volo", "version": version("volo-serve"), "extensions": extensions}

    @router.get(
        "/health/live",
        tags=["health"],
        summary="Whether this process can answer",
        response_model=Live,
        response_description="It can.",
        responses=documented(),
    )
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get(
        "/health/ready",
        tags=["health"],
        summary="Whether every model would answer a request that came now",
        response_model=Ready,
        response_description="They would.",
        responses={**documented(), 503: {"model": Ready, "description": "Some would not."}},
    )
    async def ready(request: Request) -> Response:
        well = not models.ailments()
        return readiness(request, well, {"ready": well})

    @router.post(
        "/repository/index",
        summary="The models that are served",
        response_model=list[ModelState],
        response_description="Each with its state.",
        responses=documented(),
    )
    async def index() -> list[dict[str, str]]:
        return [
            {"name": name, "version": VERSION, "state": "UNAVAILABLE" if models.link(name).ailments() else "READY"}
            for name in models.names
        ]

    tell_metadata: dict[str, Any] = {
        "summary": "What goes into a model and what comes out",
        "response_model": Metadata,
        "response_description": "Its inputs and outputs.",
        "responses": _MODEL_ERRORS,
    }

    @router.get("/models/{model}", **tell_metadata)
    @router.get("/models/{model}/versions/{version}", dependencies=this_version, **tell_metadata)
    async def metadata(model: ModelName) -> dict[str, Any]:
        classes = len(models.card(model).labels)
        return {
            "name": model,
            "versions": [VERSION],
            "platform": "pytorch_volo",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
            "outputs": [
                {"name": "labels", "datatype": "BYTES", "shape": [-1, -1]},
                {"name": "indices", "datatype": "INT64", "shape": [-1, -1]},
                {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
                {"name": "logits", "datatype": "FP32", "shape": [-1, classes]},
            ],
        }

    tell_config: dict[str, Any] = {
        "summary": "The same, as Triton's model configuration has it",
        "response_description": "The configuration.",
        "responses": _MODEL_ERRORS,
    }

    @router.get("/models/{model}/config", **tell_config)
    @router.get("/models/{model}/versions/{version}/config", dependencies=this_version, **tell_config)
    async def config(model: ModelName) -> dict[str, Any]:
        """Triton's tools ask for it."""
        classes = len(models.card(model).labels)
        kinds = {"labels": "TYPE_STRING", "indices": "TYPE_INT64", "scores": "TYPE_FP32"}
        return {
            "name": model,
            "platform": "pytorch_volo",
            "max_batch_size": settings.max_batch,
            "input": [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}],
            "output": [
                *({"name": name, "data_type": kind, "dims": [-1]} for name, kind in kinds.items()),
                {"name": "logits", "data_type": "TYPE_FP32", "dims": [classes]},
            ],
        }

    @router.get("/models/{model}/ready", **_READY)
    @router.get("/models/{model}/versions/{version}/ready", dependencies=this_version, **_READY)
    async def model_ready(model: ModelName, request: Request) -> Response:
        well = not models.ailments(model)
        return readiness(request, well, {"name": model, "ready": well})

    @router.post("/models/{model}/infer", **_INFER)
    @router.post("/models/{model}/versions/{version}/infer", dependencies=this_version, **_INFER)
    async def infer(model: ModelName, request: Request) -> Response:
        """There may be as many pictures as fit one run: either all are answered, or the request fails."""
        record: Record = request.state.record
        async with Patience(settings.timeout_s) as patience:
            with record.stage("receive"):
                body = await read_body(request, PICTURES_IN_BYTES * settings.max_bytes)
            patience.watch(request)
            # large JSON takes its time, and others shall not wait for it
            received = await asyncio.to_thread(receive, body, request.headers.get(HEADER_LENGTH))
            pictures = await asyncio.to_thread(_pictures, received, settings)
            inferences = await _infer_all(models, pictures, record, model)
        return _answer(received.request, model, inferences)

    return router


_VersionName = Annotated[str, Path(description=f"There is the version {VERSION}.")]


async def _check_version(model: ModelName, version: _VersionName) -> None:
    if version != VERSION:
        raise UnknownModel(f"The model {model!r:.80} has only the version {VERSION}.")


def _pictures(received: Received, settings: Settings) -> list[Picture]:
    if [tensor.name for tensor in received.request.inputs] != ["image"]:
        raise MalformedBody('The request must have one input, named "image".')
    (tensor,), (binary,) = received.request.inputs, received.binaries
    count = tensor.shape[0] if tensor.shape else 0
    if not 1 <= count <= settings.max_batch:
        raise InvalidParameter(f"A request holds 1 to {settings.max_batch} pictures (got {count}).")
    match tensor.datatype, tensor.shape:
        case "BYTES", [_] | [_, 1]:
            files = [from_base64(each) if isinstance(each, str) else each for each in texts(tensor, binary)]
            return [checked(file, settings.max_bytes) for file in files]
        case "UINT8", [_, height, width, 3]:
            if height * width > settings.max_pixels or max(height, width) > MAX_SIDE:
                raise TooManyPixels(f"The pictures have {width} x {height} pixels, which is more than allowed.")
            if height < 1 or width < 1:
                raise MalformedBody("The pictures have no pixels.")
            return list(pixels(tensor, binary))
    raise MalformedBody("The input image must be BYTES [N] or [N, 1], encoded pictures, or UINT8 [N, H, W, 3], pixels.")


async def _infer_all(models: Models, pictures: Sequence[Picture], record: Record, model: str) -> list[Inference]:
    """All of them at once; the first that fails makes the request fail, and the others are not computed."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(models.infer(picture, record, model)) for picture in pictures]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _answer(asked: InferRequest, model: str, inferences: Sequence[Inference]) -> Response:
    top_k = asked.parameters.get("top_k", DEFAULT_TOP_K)
    if not isinstance(top_k, int) or top_k < 1:
        raise InvalidParameter(f"top_k: it must be a whole number from 1 on (got {top_k!r:.50})")
    wanted = asked.outputs or DEFAULT_OUTPUTS
    outputs = [_output(each, inferences, top_k) for each in wanted]
    by_default = bool(asked.parameters.get("binary_data_output", False))
    binary = [bool(each.parameters.get("binary_data", by_default)) for each in wanted]
    head = {"model_name": model, "model_version": VERSION, **({"id": asked.id} if asked.id else {})}
    encoded = encode(head, outputs, binary)
    if encoded.json_length is None:
        return Response(encoded.body, media_type="application/json")
    headers = {HEADER_LENGTH: str(encoded.json_length)}
    return Response(encoded.body, headers=headers, media_type="application/octet-stream")


def _output(wanted: RequestedOutput, inferences: Sequence[Inference], top_k: int) -> OutputTensor:
    count = wanted.parameters.get("classification")
    if count is not None:
        return OutputTensor(wanted.name, _classification(wanted.name, inferences, count))
    if wanted.name == "logits":
        return OutputTensor(wanted.name, np.stack([each.logits for each in inferences]))
    found = [each.top(top_k) for each in inferences]
    if wanted.name == "labels":
        return OutputTensor(wanted.name, np.array([[one.label for one in row] for row in found], object))
    if wanted.name == "indices":
        return OutputTensor(wanted.name, np.array([[one.index for one in row] for row in found], np.int64))
    return OutputTensor(wanted.name, np.array([[one.score for one in row] for row in found], np.float32))


def _classification(name: str, inferences: Sequence[Inference], count: Any) -> Any:
    """Triton's classification extension: the highest values as texts ``value:index:label``."""
    if name not in ("scores", "logits") or not isinstance(count, int) or count < 1:
        raise InvalidParameter("classification: a number of classes from 1 on, of the output scores or logits")
    rows = []
    for each in inferences:
        values = each.logits if name == "logits" else each.scores
        found = top(values, each.card.labels, count, threshold=-np.inf)
        rows.append([f"{one.score:f}:{one.index}:{one.label}" for one in found])
    return np.array(rows, object)
