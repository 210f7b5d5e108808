"""The application in the test's own event loop, called without a network or over real sockets."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from fakes import FakeDevice, running_engine
from fastapi import FastAPI

from service import metrics
from service.app import create_app
from service.connection import Connection
from service.settings import Settings


@asynccontextmanager
async def serving_engine(device: FakeDevice | None = None, limit: int = 64) -> AsyncIterator[Path]:
    """The socket of an engine with a device that is not real."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.sock"
        async with running_engine(device or FakeDevice(), path, limit=limit):
            yield path


def application(engine: Path, **settings: Any) -> FastAPI:
    """The application with these settings, whatever the environment says."""
    chosen = chosen_settings(**settings)
    return create_app(chosen, dict.fromkeys(chosen.sources, engine))


def chosen_settings(**settings: Any) -> Settings:
    """These and otherwise the defaults, whatever the environment says."""
    return Settings(**{**{name: field.default for name, field in Settings.model_fields.items()}, **settings})


@asynccontextmanager
async def calling(app: FastAPI, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running application, once it is ready."""
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://volo")  # it runs no lifespan
    async with app.router.lifespan_context(app), client:
        if ready:
            await eventually(lambda: not app.state.models.ailments())
        yield client


@asynccontextmanager
async def listening(app: FastAPI, patience_s: float = 10.0) -> AsyncIterator[int]:
    """The port of a real server that runs the application, once it is ready."""
    http = partial(Connection, patience_s=patience_s)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, http=cast(Any, http)))
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started and not app.state.models.ailments())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def eventually(holds: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until it holds; only a test that fails waits so long."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"it did not hold within {within_s} s"
        await asyncio.sleep(0.005)


def outcomes() -> Counter[tuple[str, str]]:
    """How many requests were counted in this process so far, by endpoint and outcome."""
    counted: Counter[tuple[str, str]] = Counter()
    for metric in metrics.requests.collect():
        for sample in metric.samples:
            if sample.name == "volo_requests_total" and sample.value:
                counted[sample.labels["endpoint"], sample.labels["outcome"]] += int(sample.value)
    return counted


def rejections() -> Counter[tuple[str, str]]:
    """How much was refused in this process so far, by model and reason."""
    samples = [sample for metric in metrics.rejections.collect() for sample in metric.samples]
    counted = [each for each in samples if each.name == "volo_rejections_total"]
    return Counter({(each.labels["model"], each.labels["reason"]): int(each.value) for each in counted})


def queue_depth() -> float:
    """How many pictures wait for the device, those in the background too, as this process counts them."""
    gauges = metrics.queue_depth, metrics.background_depth
    return sum(sample.value for gauge in gauges for metric in gauge.collect() for sample in metric.samples)
