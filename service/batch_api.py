"""Many pictures in one request: read as they come, and answered line by line, in their order."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from service import metrics
from service.accounting import Record
from service.api import REPLY, PredictQuery, PredictReply, PredictRoute, reply_fields
from service.archives import Entry, Limits
from service.bodies import Room
from service.bundles import Shelf, read_pictures
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    EmptyBody,
    EngineUnavailable,
    InsufficientStorage,
    InternalError,
    InvalidParameter,
    Overloaded,
    ServiceError,
    TooManyPictures,
    UnknownModel,
)
from service.inference import Models
from service.logs import logger
from service.outputs import Wants
from service.patience import PARAMETERS, Patience, timeout_s
from service.problems import READING, STATUS, documented
from service.settings import Settings
from service.spool import Spool, no_room

AHEAD = 8
"""So many more pictures than fit into a run are under way for one request: they are read and decoded meanwhile."""

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


class Batch:
    """One request's pictures on their way.

    They are read ahead no further than there is room. Their lines never hold up the reading: most callers send all of
    their body before they read the first line.
    """

    def __init__(
        self, models: Models, settings: Settings, room: Room, shelf: Shelf, request: Request, query: PredictQuery
    ) -> None:
        self._models = models
        self._settings = settings
        self._room = room
        self._shelf = shelf
        self._request = request
        self._query = query
        self._record: Record = request.state.record
        self._under_way: asyncio.Queue[asyncio.Task[bytes] | bytes] = asyncio.Queue(settings.max_batch + AHEAD)

    async def respond(self, response: Response, send: Send) -> None:
        """Read, look and answer; what is wrong before the first picture is raised.

        Raises:
            ServiceError: as ``read_pictures`` does.
            EmptyBody: there is no picture.
            EngineUnavailable: the service ends.
        """
        try:
            async with Patience(None) as patience, aclosing(self._pictures(patience)) as pictures:
                async with self._models.closing.before():
                    first = await anext(pictures, None)
                if first is None:
                    raise EmptyBody("There is no picture in the request.")
                await send(
                    {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
                )
                with Spool() as lines:
                    async with asyncio.TaskGroup() as group:
                        reading = group.create_task(self._read(first, pictures, patience, group))
                        group.create_task(self._collect(lines, reading, patience))
                        async for chunk in lines.chunks():
                            await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except* ClientGone:
            self._record.outcome = ClientGone.code

    def _pictures(self, patience: Patience) -> AsyncGenerator[Entry, None]:
        settings = self._settings
        limits = Limits(settings.max_bytes, settings.batch_max_bytes, settings.batch_max_pictures)

        def hold() -> None:
            self._request.state.hold(settings.max_bytes * 3 // 2)  # as base64 a picture is a third larger, and a chunk

        def on_read() -> None:
            patience.watch(self._request)

        return read_pictures(self._request, limits, settings.timeout_s, hold, on_read, self._shelf)

    async def _read(
        self, first: Entry, rest: AsyncGenerator[Entry, None], patience: Patience, group: asyncio.TaskGroup
    ) -> None:
        last_line = b""
        try:
            await self._start(0, first, group)
            index = 1
            async for entry in rest:
                await self._start(index, entry, group)
                index += 1
        except ClientGone:
            raise
        except ServiceError as error:
            self._record.ended_by(error)
            last_line = _line(_problem(error))
            patience.watch(self._request)
        await self._under_way.put(last_line)

    async def _start(self, index: int, entry: Entry, group: asyncio.TaskGroup) -> None:
        """Have a picture looked at as soon as there is room."""
        if index == self._settings.batch_max_pictures:
            raise TooManyPictures(f"At most {index:,} pictures are allowed at once; those before have been answered.")
        size = len(entry.content) if isinstance(entry.content, bytes) else 0
        await self._room.take(size)
        task = group.create_task(self._answer(index, entry))
        task.add_done_callback(lambda _: self._room.give_back(size))
        try:
            await self._under_way.put(task)
        except asyncio.CancelledError:
            task.cancel()  # nobody else knows of it
            raise

    async def _collect(self, lines: Spool, reading: asyncio.Task[None], patience: Patience) -> None:
        try:
            async with self._models.closing.before():
                while isinstance(line := await self._under_way.get(), asyncio.Task):
                    lines.put(await line)
        except (OSError, EngineUnavailable) as error:
            line = self._cut_short(reading, _no_more(error))
            patience.watch(self._request)
        lines.end(line)

    def _cut_short(self, reading: asyncio.Task[None], error: ServiceError) -> bytes:
        """The last line where there can be no more of them: what is under way is given up."""
        reading.cancel()
        while not self._under_way.empty():
            if isinstance(task := self._under_way.get_nowait(), asyncio.Task):
                task.cancel()
        self._record.ended_by(error)
        return _line(_problem(error))

    async def _answer(self, index: int, entry: Entry) -> bytes:
        try:
            told = await self._predict(entry)
        except ServiceError as error:
            told = _problem(error)
        except Exception:
            logger.exception("internal error")
            told = _problem(InternalError("It has been logged under the request's id."))
        metrics.batch_lines_of(self._record.model, told.get("code", "ok")).inc()
        return _line({"index": index, "name": entry.name, **told})

    async def _predict(self, entry: Entry) -> dict[str, Any]:
        if isinstance(entry.content, ServiceError):
            raise entry.content
        record = Record(self._record.request_id)  # of its own, because stages are timed by picture
        record.deadline_s = self._record.deadline_s
        wants = Wants.EVIDENCE if self._query.evidence else Wants.NONE
        inference = await self._models.infer(entry.content, record, self._query.model, wants, background=True)
        return {"status": 200, **reply_fields(inference, self._query, record)}


def _no_more(error: OSError | EngineUnavailable) -> ServiceError:
    """Why there are no more lines."""
    if isinstance(error, EngineUnavailable):
        return error
    told = "There is no room for more answers until those before are read."
    return no_room(error, "lines that wait to be read", told)


def _problem(error: ServiceError) -> dict[str, Any]:
    return {"status": STATUS[type(error)], "code": error.code, "title": error.title, "detail": error.detail}


def _line(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
