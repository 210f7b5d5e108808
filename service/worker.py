"""An HTTP worker: one process that accepts, decodes and answers, over the engine's link."""

import asyncio
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings


def main(orders: dict[str, Any]) -> None:
    """Serve until told to stop; ``orders`` are the supervisor's."""
    settings = Settings.model_validate(orders["settings"])
    app = create_app(settings, engine=Path(orders["engine"]))
    listener = socket.socket(fileno=orders["listener"])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(GracefulServer(app, settings).serve(sockets=[listener]))


class GracefulServer(uvicorn.Server):
    """On SIGTERM it is not ready at once, but serves on for a grace period: balancers need time to notice."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.timeout_s) + 1,
        )
        super().__init__(config)
        self._app = app
        self._grace_s = settings.grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.draining = True
        grace_s = self._grace_s if sig == signal.SIGTERM else 0.0
        asyncio.get_running_loop().call_later(grace_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True
