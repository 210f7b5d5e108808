"""Whether the service is well: for balancers and orchestrators."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service.inference import Models
from service.problems import documented, exemplified
from service.settings import Settings


class ModelHealth(BaseModel):
    name: str
    device: str | None = Field(description="Where it runs; unknown until it has been loaded.")
    ready: bool
    reasons: list[str] = Field(description="Why it is not ready; empty if it is.")


_HEALTH: dict[str, Any] = {
    "status": "ready",
    "reasons": [],
    "models": [{"name": "embedded", "device": "cpu", "ready": True, "reasons": []}],
}


class Health(BaseModel):
    status: Literal["live", "not live", "ready", "not ready"]
    reasons: list[str] = Field([], description="Why the service is not live, or not ready; empty if it is.")
    models: list[ModelHealth] = Field([], description="The models that are served; the first is the default.")


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The routes that tell how the service is."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/health/live",
        summary="Whether this process can answer, and engines do not die again and again",
        response_model=Health,
        response_description="It is well enough to be left alone.",
        responses={
            **exemplified({"status": "live", "reasons": [], "models": []}),
            **documented(),
            503: {"model": Health, "description": "It should be started anew, for the `reasons` given."},
        },
    )
    async def live(request: Request) -> Response:
        """Three engines in a row, none of which had served for a minute, make it not live, until one has."""
        hopeless = models.hopeless()
        health = Health(status="not live" if hopeless else "live", reasons=hopeless)
        return readiness(request, not hopeless, health.model_dump())

    async def ready(request: Request) -> Response:
        """Ready means that the models are loaded, warm, and lately gave a right answer."""
        health = _health(models)
        return readiness(request, not health.reasons, health.model_dump())

    for path in ("/health", "/health/ready"):
        router.add_api_route(
            path,
            ready,
            summary="Whether a picture sent now would be answered",
            response_model=Health,
            response_description="It would.",
            responses={
                **exemplified(_HEALTH),
                **documented(),
                503: {"model": Health, "description": "It would not, for the `reasons` given."},
            },
        )

    return router


def readiness(request: Request, ready: bool, told: dict[str, Any]) -> Response:
    """What a prober is told, which counts as not_ready if so it is."""
    if not ready:
        request.state.record.outcome = "not_ready"
    return JSONResponse(told, 200 if ready else 503)


def _health(models: Models) -> Health:
    each = []
    for name in models.names:
        link = models.link(name)
        reasons = link.ailments()
        each.append(
            ModelHealth(name=name, device=link.card.device if link.card else None, ready=not reasons, reasons=reasons)
        )
    reasons = models.ailments()
    return Health(status="not ready" if reasons else "ready", reasons=reasons, models=each)
