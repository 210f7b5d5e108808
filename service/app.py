"""The application: routes, the one table of errors, and the link to the engine for as long as it lives."""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service import admin, api, embeddings, errors, hugging_face, logs, metrics, open_inference, torchserve
from service.accounting import Accounting, Record
from service.decoders import Decoders
from service.engine_host import engine_hosts
from service.inference import Models
from service.link import Link
from service.logs import logger
from service.settings import Settings

STATUS: dict[type[errors.ServiceError], int] = {
    errors.EmptyBody: 400,
    errors.MalformedBody: 400,
    errors.UnknownModel: 404,
    errors.TooManyBytes: 413,
    errors.TooManyPixels: 413,
    errors.NotAnImage: 415,
    errors.UnsupportedType: 415,
    errors.TruncatedImage: 422,
    errors.InvalidParameter: 422,
    errors.ClientGone: 499,  # nobody reads it; what nginx says for the same
    errors.ReloadFailed: 409,
    errors.InferenceFailed: 500,
    errors.Overloaded: 503,
    errors.EngineUnavailable: 503,
    errors.DeadlineExceeded: 504,
}


def create_app(
    settings: Settings | None = None, engines: Mapping[str, Path] | None = None, reload: admin.Reload | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: read from the environment if not given.
        engines: each model's socket, of engines that run elsewhere; without them the application runs its own, as
            ``uvicorn --factory service.app:create_app`` does.
        reload: has one model or all of them loaded anew, by whoever runs the engines.
    """
    settings = settings or Settings()
    links = _links(settings)
    models = Models(links, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if engines:
            app.state.reload = reload
            async with _connected(links, engines):
                yield
        else:
            async with _own_engines(app, links, settings):
                yield

    app = FastAPI(title="volo", summary="Names what is in a photograph.", lifespan=lifespan, redirect_slashes=False)
    app.state.models = models
    app.state.draining = False
    # not by include_router, which looks for each request's route several times, and ahead of the documentation's pages
    rooms = (api, embeddings, open_inference, hugging_face, torchserve, admin)
    routers = [room.create_router(models, settings) for room in rooms]
    app.router.routes[:0] = [route for router in routers for route in router.routes]
    app.add_exception_handler(errors.ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Accounting, apology=_apology)
    return app


def _links(settings: Settings) -> dict[str, Link]:
    """To each model, with slots for as many pictures as may wait, for two of the largest runs, for as many in the
    background as one of them, and a few to decode in."""
    slots = settings.queue_limit + 3 * settings.max_batch + settings.decode_threads
    decoders = Decoders(settings.decode_threads)
    return {name: Link(slots, decoders) for name in settings.sources}


@asynccontextmanager
async def _connected(links: Mapping[str, Link], engines: Mapping[str, Path]) -> AsyncIterator[None]:
    async def stay() -> None:
        await asyncio.gather(*(link.run(engines[name]) for name, link in links.items()))

    async with _needed(stay()):
        yield


@asynccontextmanager
async def _own_engines(app: FastAPI, links: Mapping[str, Link], settings: Settings) -> AsyncIterator[None]:
    logs.configure(settings.log_level, settings.log_format, "app")
    with engine_hosts(settings) as hosts:
        app.state.reload = hosts.reload
        async with _needed(hosts.run()):
            try:
                async with _connected(links, {name: host.path for name, host in hosts.items()}):
                    yield
            finally:
                await hosts.stop()
    metrics.remove()  # now, because a server that SIGTERM ends may not come to its exit handlers


@asynccontextmanager
async def _needed(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do the work beside the application, and end the process if it fails: nobody shall wait for the dead."""

    def on_done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            logger.critical("cannot go on", reason=repr(error))
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work)
    task.add_done_callback(on_done)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _problem(
    record: Record, status: int, code: str, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer in the form of RFC 9457, counted under its code."""
    record.outcome = code
    body = {
        "type": f"urn:volo:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": record.request_id,
    }
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServiceError)
    headers = {}
    if isinstance(error, errors.RetryableError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return _problem(request.state.record, STATUS[type(error)], error.code, error.title, error.detail, headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    return _problem(request.state.record, error.status_code, code, phrase, error.detail, error.headers)


def _apology(record: Record) -> Response:
    """The answer to what nobody foresaw: what it was stands in the log, under the request's id."""
    return _problem(record, 500, "internal_error", "A fault of the service", "It has been logged under the request_id.")
