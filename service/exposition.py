"""What Prometheus reads: all that our processes count, and what need not be counted because it is known when asked."""

from collections.abc import Iterable
from importlib.metadata import version
from platform import python_version

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.core import GaugeMetricFamily
from starlette.concurrency import run_in_threadpool

from service import multiprocess
from service.inference import Models
from service.problems import documented
from service.settings import Settings


def create_router(models: Models, settings: Settings) -> APIRouter:
    """The route that is scraped."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/metrics",
        summary="Prometheus' text format, all processes in one",
        response_class=PlainTextResponse,
        response_description="All metrics.",
        responses=documented(),
    )
    async def metrics() -> Response:
        text = await run_in_threadpool(multiprocess.exposition, facts(models))
        return Response(text, media_type=multiprocess.CONTENT_TYPE)

    return router


def facts(models: Models) -> Iterable[GaugeMetricFamily]:
    """What runs here, and whether each model is ready as far as this worker can tell."""
    build = GaugeMetricFamily("volo_build_info", "What runs here; always 1.", labels=["version", "python", "torch"])
    build.add_metric([version("volo-serve"), python_version(), version("torch")], 1)
    info = GaugeMetricFamily(
        "volo_model_info", "The models that are loaded; always 1.", labels=["model", "device", "image_size"]
    )
    ready = GaugeMetricFamily("volo_model_ready", "Whether a picture sent now would be answered.", labels=["model"])
    for name in models.names:
        link = models.link(name)
        ready.add_metric([name], not link.ailments())
        if link.card:
            info.add_metric([name, link.card.device, str(link.card.image_size)], 1)
    return build, info, ready
