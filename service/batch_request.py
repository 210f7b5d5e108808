"""Many pictures of one request on their way: read as they come, looked at, and told line by line, in their order."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.types import Send

from service import metrics
from service.accounting import Record
from service.api import PredictQuery, reply_fields
from service.archives import Entry, Limits
from service.bodies import Room
from service.bundles import Shelf, read_pictures
from service.errors import (
    ClientGone,
    EmptyBody,
    EngineUnavailable,
    InternalError,
    ServiceError,
    TooManyPictures,
)
from service.inference import Models
from service.logs import logger
from service.outputs import Wants
from service.patience import Patience
from service.problems import STATUS
from service.settings import Settings
from service.spool import Spool, no_room

AHEAD = 8
"""So many more pictures than fit into a run are under way for one request: they are read and decoded meanwhile."""


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
