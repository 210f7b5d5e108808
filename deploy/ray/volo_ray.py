"""The service on Ray Serve: each replica is the whole of it, with an engine of its own on a GPU of its own.

serve run --app-dir deploy/ray volo_ray:volo
serve deploy deploy/ray/serve.yaml
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from ray import serve

from service.app import create_app
from service.settings import Settings


def application() -> FastAPI:
    """The service, which has started when its model is warm: before that Ray sends a replica nothing."""
    settings = Settings()
    app = create_app(settings.model_copy(update={"workers": 1}))  # a replica is one process beside its engine's
    start = app.router.lifespan_context

    @asynccontextmanager
    async def start_warm(app: FastAPI) -> AsyncIterator[None]:
        async with start(app):
            while app.state.models.ailments():  # noqa: ASYNC110 - to ask costs nothing, and ends with the start
                await asyncio.sleep(0.1)
            yield

    app.router.lifespan_context = start_warm
    return app


@serve.deployment(
    ray_actor_options={"num_gpus": 1, "num_cpus": 8},
    # As many as fill runs and wait for the next; more wait at Ray's proxy, or go to another replica.
    max_ongoing_requests=128,
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 64},
    health_check_period_s=5,  # Ray replaces a replica after three that fail; a dead engine is back by then
    graceful_shutdown_timeout_s=20,
)
@serve.ingress(application)
class Volo:
    """What Ray asks of a replica that the service does not answer itself."""

    app: FastAPI

    def check_health(self) -> None:
        """Raise RuntimeError, with the reasons, if pictures should not be sent here."""
        if ailments := self.app.state.models.ailments():
            raise RuntimeError("; ".join(ailments))


volo = Volo.bind()
