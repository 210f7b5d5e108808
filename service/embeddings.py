"""A picture as a vector: the class token that the model makes before it names anything."""

from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from service.accounting import Record
from service.api import PICTURE_BODY
from service.inference import Models
from service.outputs import Wants
from service.patience import PARAMETERS, Patience
from service.problems import INFERRING, READING, documented, exemplified
from service.settings import Settings
from service.uploads import read_picture

_REPLY: dict[str, Any] = {
    "model": "embedded",
    "dimension": 4,
    "embedding": [0.52, -1.13, 0.08, 0.77],
    "timings_ms": {"receive": 0.075, "decode": 3.086, "queue": 0.573, "device": 18.724, "total": 23.649},
}


class EmbedQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | SkipJsonSchema[None] = Field(None, description="Which model is to answer; the first if none is named.")
    normalize: bool = Field(False, description="Scale the vector to length 1, so that a product is a cosine.")


class EmbedReply(BaseModel):
    model: str = Field(description="Which model answered.")
    dimension: int = Field(description="How many numbers there are.")
    embedding: list[float] = Field(description="The picture's features. Only those of the same model compare.")
    timings_ms: dict[str, float] = Field(description="Milliseconds in each stage, and in all until the answer.")


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The route that embeds pictures."""
    router = APIRouter(tags=["predict"])

    @router.post(
        "/embed",
        summary="Make a vector of a picture",
        response_model=EmbedReply,
        response_description="The picture's features.",
        responses={**exemplified(_REPLY), **documented(*READING, *INFERRING)},
        openapi_extra={**PICTURE_BODY, **PARAMETERS},
    )
    async def embed(request: Request, query: Annotated[EmbedQuery, Query()]) -> Response:
        """The vector is what the model makes of a picture before it names it: to search and to compare."""
        record: Record = request.state.record
        async with Patience.of(request, settings.timeout_s) as patience:
            models.knock(record, query.model)
            with record.stage("receive"):
                picture = await read_picture(request, settings.max_bytes)
            patience.watch(request)
            inference = await models.infer(picture, record, query.model, Wants.FEATURES)
        features = inference.features
        assert features is not None
        if query.normalize:
            length = float(np.linalg.norm(features))
            features = features / (length or 1.0)
        reply = {
            "model": inference.card.model,
            "dimension": len(features),
            "embedding": features,
            "timings_ms": record.timings_ms(),
        }
        return Response(orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return router
