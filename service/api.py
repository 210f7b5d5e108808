"""The service's own way to ask what is in a picture, and what goes over the wire."""

import base64
from collections.abc import Callable, Coroutine, Sequence
from io import BytesIO
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from models.evidence import box, loudest, overlay
from models.prediction import Prediction
from models.preprocess import Extent, region
from service.accounting import Record
from service.errors import InvalidParameter
from service.inference import Inference, Models
from service.outputs import EVIDENCE_LABELS, Wants
from service.patience import PARAMETERS, Patience
from service.problems import INFERRING, READING, documented, exemplified
from service.settings import Settings
from service.uploads import read_picture

A_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4IScHAAK2AQUKW6YGAAAAAElFTkSuQmCC"
"""One red pixel, as PNG in base64: what the documentation shows for a picture."""


class PredictQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | SkipJsonSchema[None] = Field(None, description="Which model is to answer; the first if none is named.")
    top_k: int = Field(5, ge=1, le=1000, description="How many labels at most.")
    threshold: float = Field(0.0, ge=0.0, le=1.0, allow_inf_nan=False, description="Least score of a label.")
    evidence: bool = Field(
        False, description=f"Tell where in the picture each label is; for {EVIDENCE_LABELS} labels at most."
    )
    overlay: bool = Field(False, description="With evidence, also as a picture to lay over the one sent.")


class PatchPlace(BaseModel):
    row: int
    column: int


class LabelEvidence(BaseModel):
    """Where the model saw a label: how loudly its auxiliary head speaks for it in each patch."""

    patch: PatchPlace = Field(description="The loudest patch, the one that counted.")
    box: tuple[float, float, float, float] = Field(
        description="The loudest patch's left, top, right and bottom, as fractions of the picture's width and height."
    )
    map: list[list[float]] = Field(description="Each patch's score (a logit), row by row, over the reply's region.")
    overlay: str | None = Field(
        None, description="The map as a data URI of a transparent PNG, to lay over the reply's region."
    )


REPLY: dict[str, Any] = {
    "model": "embedded",
    "predictions": [
        {"label": "espresso", "index": 193, "wnid": "n07920052", "score": 0.138267},
        {"label": "pretzel", "index": 181, "wnid": "n07695742", "score": 0.069649},
    ],
    "timings_ms": {"receive": 0.075, "decode": 3.086, "queue": 0.573, "device": 18.724, "total": 23.649},
}


class PredictedLabel(BaseModel):
    label: str = Field(description="What people call it.")
    index: int = Field(description="The class's place in the model's list.")
    wnid: str | None = Field(description="The class's WordNet id, where it is known.")
    score: float = Field(description="How probable it is, 0 to 1, to six digits.")
    evidence: LabelEvidence | None = Field(None, description="If it was asked for.")


class PredictReply(BaseModel):
    model: str = Field(description="Which model answered.")
    predictions: list[PredictedLabel] = Field(description="The likeliest first.")
    region: tuple[float, float, float, float] | None = Field(
        None,
        description="With evidence: left, top, right and bottom of what the model sees, as fractions of the picture's "
        "width and height; below 0 and above 1 there is a border.",
    )
    timings_ms: dict[str, float] = Field(description="Milliseconds in each stage, and in all until the answer.")


_BINARY = {"schema": {"type": "string", "format": "binary"}}

PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": _BINARY["schema"]},
                    "additionalProperties": False,
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "byte",
                            "minLength": 1,
                            "description": "Base64, or a data URI of it.",
                        }
                    },
                    "additionalProperties": False,
                },
                "example": {"image": A_PICTURE},
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


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The route that names what is in a picture."""
    router = APIRouter()

    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """The picture is the raw body, a form's `file`, or base64 in JSON.

        JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read. With `evidence` each label tells where in the picture it is.
        """
        record: Record = request.state.record
        async with Patience.of(request, settings.timeout_s) as patience:
            models.knock(record, query.model)
            with record.stage("receive"):
                picture = await read_picture(request, settings.max_bytes)
            patience.watch(request)
            wants = Wants.EVIDENCE if query.evidence else Wants.NONE
            inference = await models.infer(picture, record, query.model, wants)
        return Response(predict_reply(inference, query, record), media_type="application/json")

    router.add_api_route(
        "/predict",
        predict,
        methods=["POST"],
        response_model=PredictReply,
        response_model_exclude_none=True,
        tags=["predict"],
        summary="Name what is in a picture",
        response_description="The likeliest labels.",
        responses={**exemplified(REPLY), **documented(*READING, *INFERRING)},
        openapi_extra={**PICTURE_BODY, **PARAMETERS},
        route_class_override=PredictRoute,
    )
    return router


def predict_query(request: Request) -> PredictQuery:
    """What the request's query says.

    Raises:
        InvalidParameter: it says what it may not.
    """
    if not request.scope["query_string"]:
        return _DEFAULT_QUERY
    try:
        query = PredictQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise InvalidParameter(faults(error.errors())) from None
    if query.evidence and query.top_k > EVIDENCE_LABELS:
        raise InvalidParameter(f"top_k: with evidence at most {EVIDENCE_LABELS} (got {query.top_k})")
    if query.overlay and not query.evidence:
        raise InvalidParameter("overlay: it is a picture of the evidence; ask for evidence=true too")
    return query


_DEFAULT_QUERY = PredictQuery()


def faults(found: Sequence[Any]) -> str:
    """What pydantic has found, in one line: each parameter's name and what is wrong with it."""
    return "; ".join(f"{fault['loc'][-1]}: {fault['msg']} (got {fault['input']!r:.50})" for fault in found)


def predict_reply(inference: Inference, query: PredictQuery, record: Record) -> bytes:
    """A ``PredictReply`` as JSON."""
    return orjson.dumps(reply_fields(inference, query, record), option=orjson.OPT_SERIALIZE_NUMPY)


def reply_fields(inference: Inference, query: PredictQuery, record: Record) -> dict[str, Any]:
    """A ``PredictReply``."""
    reply: dict[str, Any] = {"model": inference.card.model}
    if inference.evidence is None:
        reply["predictions"] = [prediction_fields(each) for each in inference.top(query.top_k, query.threshold)]
    else:
        reply["region"] = seen = region(inference.size, inference.card.image_size, inference.card.crop_pct)
        reply["predictions"] = _predictions_with_evidence(inference, query, seen)
    return {**reply, "timings_ms": record.timings_ms()}


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """A ``PredictedLabel``, without evidence."""
    return {
        "label": prediction.label,
        "index": prediction.index,
        "wnid": prediction.wnid,
        "score": round(prediction.score, 6),
    }


def _predictions_with_evidence(inference: Inference, query: PredictQuery, seen: Extent) -> list[dict[str, Any]]:
    """Of the labels that the engine found likeliest, because for these it has told where they are."""
    assert inference.evidence is not None
    told = []
    for index, patches in zip(inference.evidence.labels.tolist()[: query.top_k], inference.evidence.maps, strict=False):
        label, score = inference.card.labels[index], float(inference.scores[index])
        if score >= query.threshold:
            evidence = _label_evidence(patches, inference.card.image_size if query.overlay else None, seen)
            told.append({**prediction_fields(Prediction(label.name, index, label.wnid, score)), "evidence": evidence})
    return told


def _label_evidence(patches: NDArray[np.float32], overlay_size: int | None, seen: Extent) -> dict[str, Any]:
    patch = loudest(patches)
    evidence = {"patch": patch._asdict(), "box": box(patch, len(patches), seen), "map": patches.round(3)}
    if overlay_size:
        file = BytesIO()
        overlay(patches, overlay_size).save(file, "PNG")
        evidence["overlay"] = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return evidence
