"""The Open Inference Protocol v2, which KServe and Triton speak, with Triton's classification and binary tensors.

The one input, ``image``, holds encoded pictures as BYTES [N] (in JSON as base64), or pixels as UINT8 [N, H, W, 3].
The outputs are ``labels``, ``indices`` and ``scores`` [N, k], and on request ``logits`` [N, classes].
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Path, Request, Response
from numpy.typing import NDArray

from models.prediction import top
from service.accounting import Record
from service.api import A_PICTURE
from service.dialects.messages import (
    REPLY,
    VERSION,
    InferReply,
    InferRequest,
    Live,
    Metadata,
    ModelReady,
    ModelState,
    Ready,
    RequestedOutput,
    RequestParameters,
    Server,
    config_of,
    metadata_of,
    state_of,
)
from service.dialects.tensors import HEADER_LENGTH, OutputTensor, Received, encode, pixels, receive, texts
from service.dialects.words import ModelName, documented_in, inlined, speaking
from service.errors import EngineUnavailable, InvalidParameter, MalformedBody, ServiceError, TooManyPixels, UnknownModel
from service.health import readiness
from service.images import MAX_SIDE
from service.inference import Inference, Models, Picture
from service.patience import PARAMETERS, Patience
from service.problems import INFERRING, READING, documented
from service.settings import Settings
from service.threads import in_thread
from service.uploads import checked, from_base64, read_body

PICTURES_IN_BYTES = 4
"""A request may be so many times as large as a picture."""
DEFAULT_OUTPUTS = [RequestedOutput(name="labels"), RequestedOutput(name="indices"), RequestedOutput(name="scores")]

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
        **documented_in(_words, *READING, *INFERRING),
    },
    "openapi_extra": {**INFER_BODY, **PARAMETERS},
}


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The routes of the protocol."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=speaking(_words))
    this_version = [Depends(_check_version)]
    most = min(settings.max_batch, settings.queue_limit)
    reading = asyncio.Lock()

    @router.get(
        "",
        summary="What serves here",
        response_model=Server,
        response_description="Name, version and extensions.",
        responses=documented(),
    )
    async def server() -> dict[str, Any]:
        """Its `extensions` are what it can beyond the protocol."""
        extensions = ["classification", "binary_tensor_data", "model_configuration"]
        return {"name": "volo", "version": version("volo-serve"), "extensions": extensions}

    @router.get(
        "/health/live",
        tags=["health"],
        summary="Whether this process can answer, and engines do not die again and again",
        response_model=Live,
        response_description="It is well enough to be left alone.",
        responses={**documented(), 503: {"model": Live, "description": "It should be started anew."}},
    )
    async def live(request: Request) -> Response:
        well = not models.hopeless()
        return readiness(request, well, {"live": well})

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
        response_description="Each with its state.",
        responses=documented(),
    )
    async def index() -> list[ModelState]:
        return [state_of(name, models.ailments(name)) for name in models.names]

    tell_metadata: dict[str, Any] = {
        "summary": "What goes into a model and what comes out",
        "response_description": "Its inputs and outputs.",
        "responses": _MODEL_ERRORS,
    }

    @router.get("/models/{model}", **tell_metadata)
    @router.get("/models/{model}/versions/{version}", dependencies=this_version, **tell_metadata)
    async def metadata(model: ModelName) -> Metadata:
        return metadata_of(model, len(models.card(model).labels))

    tell_config: dict[str, Any] = {
        "summary": "The same, as Triton's model configuration has it",
        "response_description": "The configuration.",
        "responses": _MODEL_ERRORS,
    }

    @router.get("/models/{model}/config", **tell_config)
    @router.get("/models/{model}/versions/{version}/config", dependencies=this_version, **tell_config)
    async def config(model: ModelName) -> dict[str, Any]:
        """Triton's tools ask for it."""
        return config_of(metadata_of(model, len(models.card(model).labels)), most)

    @router.get("/models/{model}/ready", **_READY)
    @router.get("/models/{model}/versions/{version}/ready", dependencies=this_version, **_READY)
    async def model_ready(model: ModelName, request: Request) -> Response:
        well = not models.ailments(model)
        return readiness(request, well, {"name": model, "ready": well})

    @router.post("/models/{model}/infer", **_INFER)
    @router.post("/models/{model}/versions/{version}/infer", dependencies=this_version, **_INFER)
    async def infer(model: ModelName, request: Request) -> Response:
        """There may be as many pictures as fit one run: either all are answered, or the request fails. The JSON holds
        at most 1,200,000 values, as many as the pixels of 512 x 512; larger pictures come binary, or encoded."""
        record: Record = request.state.record
        async with Patience.of(request, settings.timeout_s) as patience:
            models.knock(record, model)
            with record.stage("receive"):
                body = await read_body(request, PICTURES_IN_BYTES * settings.max_bytes)
            patience.watch(request)
            # one request after the other: numbers in JSON take fifteen times their room until they are a tensor
            async with reading:
                received = await in_thread(None, receive, body, request.headers.get(HEADER_LENGTH))
                if microseconds := received.request.parameters.timeout:
                    patience.at_most(request, microseconds / 1e6)
                pictures = await in_thread(None, _pictures, received, settings, most)
                received.request.inputs.clear()  # the next one's numbers shall not come on top of these
            inferences = await _infer_all(models, pictures, record, model)
        return _answer(received.request, model, inferences)

    return router


_VersionName = Annotated[str, Path(description=f"There is the version {VERSION}.")]


async def _check_version(model: ModelName, version: _VersionName) -> None:
    if version != VERSION:
        raise UnknownModel(f"The model {model!r:.80} has only the version {VERSION}.")


def _pictures(received: Received, settings: Settings, most: int) -> list[Picture]:
    if [tensor.name for tensor in received.request.inputs] != ["image"]:
        raise MalformedBody('The request must have one input, named "image".')
    (tensor,), (binary,) = received.request.inputs, received.binaries
    count = tensor.shape[0] if tensor.shape else 0
    if not 1 <= count <= most:
        raise InvalidParameter(f"A request holds 1 to {most} pictures (got {count}).")
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
    wanted = asked.outputs or DEFAULT_OUTPUTS
    found = likeliest(inferences, asked.parameters)
    outputs = [OutputTensor(each.name, _output(each, inferences, found)) for each in wanted]
    by_default = asked.parameters.binary_data_output
    binary = [by_default if each.parameters.binary_data is None else each.parameters.binary_data for each in wanted]
    head = {"model_name": model, "model_version": VERSION, **({"id": asked.id} if asked.id else {})}
    encoded = encode(head, outputs, binary)
    if encoded.json_length is None:
        return Response(encoded.body, media_type="application/json")
    headers = {HEADER_LENGTH: str(encoded.json_length)}
    return Response(encoded.body, headers=headers, media_type="application/octet-stream")


class Likeliest(NamedTuple):
    """Of each picture the likeliest classes [N, k]."""

    labels: NDArray[Any]
    indices: NDArray[np.int64]
    scores: NDArray[np.float32]


def likeliest(inferences: Sequence[Inference], parameters: RequestParameters) -> Likeliest:
    """Each picture's likeliest classes over the threshold. Rows shorter than the longest end in "", -1 and 0."""
    rows = [each.top(parameters.top_k, parameters.threshold) for each in inferences]
    shape = len(rows), max(map(len, rows))
    found = Likeliest(np.full(shape, "", object), np.full(shape, -1, np.int64), np.zeros(shape, np.float32))
    for number, row in enumerate(rows):
        found.labels[number, : len(row)] = [one.label for one in row]
        found.indices[number, : len(row)] = [one.index for one in row]
        found.scores[number, : len(row)] = [one.score for one in row]
    return found


def _output(wanted: RequestedOutput, inferences: Sequence[Inference], found: Likeliest) -> NDArray[Any]:
    count = wanted.parameters.classification
    if count is not None:
        return _classification(wanted.name, inferences, count)
    if wanted.name == "logits":
        return np.stack([each.logits for each in inferences])
    values: NDArray[Any] = getattr(found, wanted.name)
    return values


def _classification(name: str, inferences: Sequence[Inference], count: int) -> NDArray[Any]:
    """Triton's classification extension: the highest values as texts ``value:index:label``."""
    if name not in ("scores", "logits"):
        raise InvalidParameter(f"classification: it is made of scores or of logits, and not of {name}.")
    rows = []
    for each in inferences:
        values = each.logits if name == "logits" else each.scores
        found = top(values, each.card.labels, count, threshold=-np.inf)
        rows.append([f"{one.score:f}:{one.index}:{one.label}" for one in found])
    return np.array(rows, object)
