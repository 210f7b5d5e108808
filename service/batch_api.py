"""The route for many pictures in one request, and what goes over its wire."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from service.accounting import Record
from service.api import REPLY, PredictQuery, PredictReply, PredictRoute
from service.batch_request import Batch
from service.bodies import Room
from service.bundles import Shelf
from service.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InsufficientStorage,
    InvalidParameter,
    Overloaded,
    TooManyPictures,
    UnknownModel,
)
from service.inference import Models
from service.patience import PARAMETERS, timeout_s
from service.problems import READING, documented
from service.settings import Settings

ROOM_BYTES = 1 << 26
"""For the pictures under way of all requests together; one of each comes on top."""


class PictureLine(PredictReply):
    """What a model says of one picture."""

    index: int = Field(description="The picture's place among those that were sent, from 0 on.")
    name: str | None = Field(description="What it is called: the file's name, or the line's id.")
    status: Literal[200]


class ProblemLine(BaseModel):
    """Why a picture has no labels; or, without `index` and `name` and as the last line, why no more were read."""

    index: int | None = Field(None, description="The picture's place among those that were sent, from 0 on.")
    name: str | None = Field(None, description="What it is called: the file's name, or the line's id.")
    status: int = Field(description="What `/predict` would have answered with.")
    code: str = Field(description="The kind of error, for programs.")
    title: str = Field(description="The kind of error, for people.")
    detail: str = Field(description="What was wrong, and what is allowed.")


class NdjsonResponse(JSONResponse):  # for FastAPI documents no schemas of others
    """An answer of JSON lines that something of its own sends."""

    media_type = "application/x-ndjson"

    def __init__(self, respond: Callable[[Response, Send], Awaitable[None]], status_code: int = 200) -> None:
        self.status_code = status_code
        self.init_headers()
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._respond(self, send)


_FILE = {"type": "string", "format": "binary"}


def _file(description: str) -> dict[str, Any]:
    return {"schema": {**_FILE, "description": description}}


PICTURES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": _FILE,
                            "minItems": 1,
                            "description": "The pictures; files of any other name are read too.",
                        }
                    },
                    "additionalProperties": False,
                }
            },
            "application/zip": _file("Stored or deflated."),
            "application/x-tar": _file("As it is, or gzipped."),
            "application/gzip": _file("A tar that is gzipped."),
            "application/x-ndjson": _file("Lines of JSON."),
        },
    }
}

_TIMINGS = {"decode": 3.086, "queue": 0.573, "device": 18.724, "total": 23.649}
_LINE = {"index": 0, "name": "coffee.jpg", "status": 200, **REPLY, "timings_ms": _TIMINGS}
_REFUSED = documented(
    InvalidParameter,
    UnknownModel,
    Overloaded,
    EngineUnavailable,
    DeadlineExceeded,
    InsufficientStorage,
    TooManyPictures,
    *READING,
)


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The route for many pictures."""
    router = APIRouter()
    room, shelf = Room(ROOM_BYTES), Shelf()

    async def predict_batch(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """The pictures are a form's files, the files of a zip or tar, or the images of JSON lines: each is
        `{"image": "<base64 or data URI>", "id": "cat"}`, of which the `id` may be left out and comes back as `name`.

        Each has its line in the answer, in the order sent and as soon as it is known. A bad picture is a bad line, with
        the `status`, `code`, `title` and `detail` that it would have had alone. If the body cannot be read any further,
        a last line of that kind, without `index` and `name`, tells why. In archives, folders, dotfiles and `__MACOSX`
        are left out. Single requests come first, but for a twentieth of the device's time. Pictures that are not done
        within `X-Request-Timeout-Ms` are lines with `deadline_exceeded`; there is no other limit on the whole.
        """
        record: Record = request.state.record
        record.model = models.name(query.model)
        record.deadline_s = record.arrival_s + timeout_s(request)
        record.streams = True
        models.card(query.model)
        return NdjsonResponse(Batch(models, settings, room, shelf, request, query).respond)

    router.add_api_route(
        "/predict/batch",
        predict_batch,
        methods=["POST"],
        response_class=NdjsonResponse,
        response_model=PictureLine | ProblemLine,
        response_model_exclude_none=True,
        tags=["predict"],
        summary="Name what is in many pictures",
        response_description="One such object a line.",
        responses={200: {"content": {NdjsonResponse.media_type: {"example": _LINE}}}, **_REFUSED},
        openapi_extra={**PICTURES_BODY, **PARAMETERS},
        route_class_override=PredictRoute,
    )
    return router
