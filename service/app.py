"""The application: routes, who may use them, answers to errors, and the links to the engines as long as it lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from service import (
    admin,
    api,
    batch_api,
    embeddings,
    errors,
    exposition,
    health,
    logs,
    metrics,
    multiprocess,
    page,
)
from service.access import Access, Keys, open_routes
from service.accounting import Accounting, Record
from service.bodies import Bodies
from service.buckets import Buckets
from service.contract import document
from service.control import Reload
from service.decoders import Decoders
from service.dialects import hugging_face, open_inference, torchserve
from service.dialects.words import refusing
from service.engine_host import engine_hosts
from service.inference import Models
from service.link import Link
from service.negotiation import allowed_methods, negotiate
from service.problems import STATUS, problem
from service.process import needed
from service.rate import RateLimit
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Traces

GREETING_S = 0.3
"""Far more than it takes to reach an engine; one that still loads is not waited for."""
ROOMS = (api, batch_api, health, exposition, embeddings, open_inference, hugging_face, torchserve)
"""What has routes for everybody."""


def create_app(
    settings: Settings | None = None,
    engines: Mapping[str, Path] | None = None,
    reload: Reload | None = None,
    traces: Traces | None = None,
    rate_memory: int = 0,
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: read from the environment if not given.
        engines: each model's socket, of engines that run elsewhere; without them the application runs its own, as
            ``uvicorn --factory service.app:create_app`` does.
        reload: has one model or all of them loaded anew, by whoever runs the engines.
        traces: what becomes of the spans, instead of what the settings and the environment say.
        rate_memory: descriptor of memory from ``Buckets.create``, where several processes serve the same callers.
    """
    settings = settings or Settings()
    links = _links(settings)
    models = Models(links, settings)
    traces = traces or (_traces() if settings.tracing else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if engines:
            app.state.reload = reload
            async with _connected(links, engines):
                yield
        else:
            async with _own_engines(app, links, settings):
                yield

    app = FastAPI(
        title="volo",
        summary="Names what is in a photograph.",
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=traces.telemetry if traces else None,
    )
    app.openapi = partial(document, app, settings)  # type: ignore[method-assign]
    app.state.models = models
    # not by include_router, which looks for each request's route several times, and ahead of the documentation's pages
    routers = [room.create_router(models, settings) for room in ROOMS]
    if settings.page:
        routers.append(page.create_router())
    if admin_key := settings.admin_key.get_secret_value():
        routers.append(admin.create_router(models, admin_key))
    routes = [route for router in routers for route in router.routes]
    app.router.routes[:0] = routes
    _expect_faults(routers, models)
    for route in routes:
        negotiate(route)
    app.add_exception_handler(errors.ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    if settings.rate_limit:
        buckets = Buckets(settings.rate_limit, settings.rate_burst, rate_memory or Buckets.create())
        exempt = open_routes(app.routes, settings)
        app.add_middleware(RateLimit, buckets=buckets, open_routes=exempt, refusal=refusing(routes))
    if settings.keys:
        keys = Keys(*settings.keys, *filter(None, [admin_key]))
        app.add_middleware(Access, keys=keys, open_routes=open_routes(app.routes, settings), refusal=refusing(routes))
    if settings.cors_origins:
        # outside of access: browsers ask for leave without a key, and are to read why they were refused
        app.add_middleware(CORSMiddleware, **_cors(settings))
    app.add_middleware(Bodies, most_bytes=settings.body_memory)
    app.add_middleware(Accounting, apology=_apology)
    if traces:
        traces.follow(app)
    return app


def _expect_faults(routers: list[APIRouter], models: Models) -> None:
    """Count the faults of ours that a picture can meet from 0 on."""
    faults = [kind.code for kind, status in STATUS.items() if status >= HTTPStatus.INTERNAL_SERVER_ERROR]
    for route in (route for router in routers for route in router.routes if isinstance(route, APIRoute)):
        if (route.methods or set()) - {"GET", "HEAD"}:
            for model in models.names:
                metrics.expect(route.path, model, ["ok", *faults])


def _traces() -> Traces:
    from service import tracing  # here, because what it needs is an extra

    return tracing.Traces(tracing.provider())


def _cors(settings: Settings) -> dict[str, Any]:
    return {
        "allow_origins": settings.cors_origins.split(","),
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        "expose_headers": ["X-Request-ID", "Server-Timing", "Retry-After", "WWW-Authenticate"],
    }


def _links(settings: Settings) -> dict[str, Link]:
    """To each model, with slots for as many pictures as may wait, for two of the largest runs, for as many in the
    background as one of them, and a few to decode in."""
    slots = settings.queue_limit + 3 * settings.max_batch + settings.decode_threads
    decoders = Decoders(settings.decode_threads, settings.decode_memory)
    return {name: Link(slots, decoders) for name in settings.sources}


@asynccontextmanager
async def _connected(links: Mapping[str, Link], engines: Mapping[str, Path]) -> AsyncIterator[None]:
    async def stay() -> None:
        await asyncio.gather(*(link.run(engines[name]) for name, link in links.items()))

    async with needed(stay()):
        await _greeted(links)
        yield


async def _greeted(links: Mapping[str, Link]) -> None:
    """Let nobody in before engines that are there are known: who takes a dead worker's place shall not deny them."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GREETING_S):
            while any(link.card is None for link in links.values()):  # noqa: ASYNC110 - once a process, and not for long
                await asyncio.sleep(0.005)


@asynccontextmanager
async def _own_engines(app: FastAPI, links: Mapping[str, Link], settings: Settings) -> AsyncIterator[None]:
    logs.configure(settings.log_level, settings.log_format, "app")
    with engine_hosts(settings) as hosts:
        app.state.reload = hosts.reload
        async with needed(hosts.run()):
            try:
                async with _connected(links, {name: host.path for name, host in hosts.items()}):
                    yield
            finally:
                await hosts.stop()
    multiprocess.remove()  # now, because a server that SIGTERM ends may not come to its exit handlers


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServiceError)
    return problem(request.state.record, error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """FastAPI's own: a parameter or a body that does not fit."""
    assert isinstance(error, RequestValidationError)
    return problem(request.state.record, errors.InvalidParameter(api.faults(error.errors())))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's and FastAPI's own: no such path, no such method, no such form."""
    assert isinstance(error, HTTPException)
    record = request.state.record
    match error.status_code:
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = allowed_methods(request)
            if request.method == "OPTIONS":
                return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": ", ".join(allowed)})
            return problem(record, errors.WrongMethod(f"It takes {', '.join(allowed)}.", allowed))
        case HTTPStatus.NOT_FOUND:
            return problem(record, errors.NoSuchPath("Which paths there are is told by /openapi.json."))
        case _:
            return problem(record, errors.MalformedBody(error.detail))


def _apology(record: Record) -> Response:
    """The answer to what nobody foresaw: what it was stands in the log, under the request's id."""
    return problem(record, errors.InternalError("It has been logged under the request_id."))
