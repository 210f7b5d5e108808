"""Starts, watches, restarts and drains the engine and the HTTP workers."""

import asyncio
import signal
import socket
import sys
from typing import Any

from service import logs
from service.engine_host import EngineHost, engine_host
from service.logs import logger
from service.process import REFUSED, Child, Refused
from service.settings import Settings

DRAIN_SLACK_S = 5.0


def supervise(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status."""
    logs.configure(settings.log_level, settings.log_format, "supervisor")
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(f"volo: cannot listen on {settings.host}:{settings.port}: {error.strerror}", file=sys.stderr)
        return 1
    with listener, engine_host(settings) as engine:
        return asyncio.run(_serve(settings, listener, engine))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


async def _serve(settings: Settings, listener: socket.socket, engine: EngineHost) -> int:
    host, port = listener.getsockname()[:2]
    orders = {
        "settings": settings.model_dump(mode="json"),
        "engine": str(engine.path),
        "listener": listener.fileno(),
    }
    workers = [
        Child("worker", {**orders, "number": number}, inherit=[listener.fileno()])
        for number in range(settings.http_workers)
    ]
    stop_signal: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, _note, stop_signal, sig)
    logger.info("starting", url=f"http://{host}:{port}", model=settings.model, workers=len(workers))
    running = [asyncio.create_task(engine.run()), *(asyncio.create_task(worker.run()) for worker in workers)]
    awaited: list[asyncio.Future[Any]] = [stop_signal, *running]
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    sig = stop_signal.result() if stop_signal.done() else signal.SIGINT
    logger.info("stopping", signal=sig.name)
    patience_s = settings.grace_s + settings.timeout_s + DRAIN_SLACK_S
    await asyncio.gather(*(worker.stop(sig, patience_s) for worker in workers))
    await engine.stop()
    results = await asyncio.gather(*running, return_exceptions=True)
    return _status([result for result in results if result is not None])


def _note(stop_signal: "asyncio.Future[signal.Signals]", sig: signal.Signals) -> None:
    if not stop_signal.done():
        stop_signal.set_result(sig)


def _status(faults: list[BaseException]) -> int:
    """0 for a wanted end; what made the others end has been logged by the one that refused."""
    for fault in faults:
        if not isinstance(fault, Refused):
            logger.critical("cannot go on", reason=repr(fault))
    return REFUSED if faults else 0
