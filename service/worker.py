"""An HTTP worker: one process that accepts, decodes and answers, over the engine's link."""

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib.resources import files
from pathlib import Path
from ssl import SSLContext
from types import FrameType
from typing import Any, cast

import uvicorn
import uvloop
from fastapi import FastAPI

from service import tls
from service.app import create_app
from service.connection import Connection
from service.control import ask_to_reload
from service.inference import Models
from service.lifeline import report_alive, report_ready
from service.logs import logger
from service.process import needed
from service.settings import Settings

BEAT_S = 1.0
SWITCH_S = 0.0005
"""How long the loop lets a decoder's thread keep the interpreter; Python's own 5 ms are longer than a small request."""


def main(orders: dict[str, Any]) -> None:
    """Serve until told to stop; ``orders`` are the supervisor's."""
    sys.setswitchinterval(SWITCH_S)
    settings = Settings.model_validate(orders["settings"])
    engines = {name: Path(path) for name, path in orders["engines"].items()}
    reload = partial(ask_to_reload, Path(orders["control"]))
    app = create_app(settings, engines, reload, rate_memory=orders["rate_memory"])
    listener = socket.socket(fileno=orders["listener"])
    server = GracefulServer(app, settings, url="" if orders["number"] else orders["url"])
    with asyncio.Runner(loop_factory=partial(_Loop, settings.timeout_s)) as runner:
        try:
            runner.run(server.serve(sockets=[listener]))
        except tls.UnusableCertificate as error:
            logger.critical("cannot serve until the certificate is mended", reason=str(error))
            sys.exit(1)


class _Loop(uvloop.Loop):
    """An event loop in which a TLS handshake takes no longer than so many seconds."""

    def __init__(self, handshake_s: float) -> None:
        super().__init__()
        self._handshake_s = handshake_s

    async def create_server(self, *given: Any, **named: Any) -> Any:
        if named.get("ssl"):  # uvicorn does not say how long
            named["ssl_handshake_timeout"] = self._handshake_s
        return await super().create_server(*given, **named)


class GracefulServer(uvicorn.Server):
    """On SIGTERM it is not ready at once, but serves on for a grace period: balancers need time to notice.

    With a ``url`` it is the one that says in the log when the service is ready.
    """

    def __init__(self, app: FastAPI, settings: Settings, url: str = "") -> None:
        config = uvicorn.Config(
            app,
            http=cast(Any, partial(Connection, patience_s=settings.timeout_s)),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            ssl_context_factory=_tls(settings),
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=math.ceil(settings.timeout_s) + 1,
        )
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        report_ready()
        self._beating = asyncio.create_task(_beat())

    async def main_loop(self) -> None:
        gc.freeze()  # what is there by now stays, and need not be looked at again and again
        settings = self._settings
        async with AsyncExitStack() as beside:
            if self._url:
                await beside.enter_async_context(needed(announce(self._app.state.models, self._url)))
            if self.config.ssl and settings.tls_cert and settings.tls_key:
                following = tls.follow(self.config.ssl, settings.tls_cert, settings.tls_key)
                await beside.enter_async_context(needed(following))
            await super().main_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.models.draining = True
        grace_s = self._settings.grace_s if sig == signal.SIGTERM else 0.0
        asyncio.get_running_loop().call_later(grace_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True
        # before uvicorn cuts off what is left, without a word that its callers would know
        asyncio.get_running_loop().call_later(self._settings.timeout_s, self._app.state.models.closing.end)


async def _beat() -> None:
    """Have the supervisor know that the loop does not hang, to the process's end."""
    while True:
        await asyncio.sleep(BEAT_S)
        report_alive()


def _tls(settings: Settings) -> Callable[..., SSLContext] | None:
    """What makes uvicorn's TLS context, if there is to be one."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate, key = settings.tls_cert, settings.tls_key
    return lambda *_: tls.context(certificate, key)


async def announce(models: Models, url: str) -> None:
    """Say so when the service is ready, and how to try it."""
    while models.ailments():  # noqa: ASYNC110 - to ask costs next to nothing, and ends with the engines' start
        await asyncio.sleep(0.1)
    served = {name: models.card(name).device for name in models.names}
    try_it = f"curl --data-binary @{_sample()} {url}/predict"
    logger.info("ready", url=url, model=", ".join(served), device=", ".join(set(served.values())), try_it=try_it)


def _sample() -> str:
    return os.path.relpath(str(files("models.data") / "samples" / "coffee.jpg"))
