"""Starts, watches, restarts and drains the engine and the HTTP workers."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from service import logs, metrics
from service.buckets import Buckets
from service.control import control
from service.engine_host import EngineHosts, engine_hosts
from service.logs import logger
from service.process import INTERRUPTED, REFUSED, Child, Refused
from service.settings import Settings

DRAIN_SLACK_S = 5.0
SILENCE_S = 10.0
"""An HTTP worker that has given no sign of life for so long hangs; it gives one every second."""


def supervise(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status."""
    logs.configure(settings.log_level, settings.log_format, "supervisor")
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        reason = f"{error.strerror}; choose another place with --host and --port, or VOLO_HOST and VOLO_PORT"
        logger.critical("cannot listen", url=_url(settings, settings.host, settings.port), reason=reason)
        return 1
    with listener, engine_hosts(settings) as engines:
        try:
            return asyncio.run(_serve(settings, listener, engines))
        except asyncio.CancelledError:
            return INTERRUPTED


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    return sock


def _url(settings: Settings, host: str, port: int) -> str:
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _serve(settings: Settings, listener: socket.socket, engines: EngineHosts) -> int:
    workers = _workers(settings, listener, engines)
    stop_signal = _stop_signal()
    url = _url(settings, *listener.getsockname()[:2])
    logger.info("starting", url=url, models=", ".join(engines), workers=len(workers))
    running = [asyncio.create_task(engines.run())]
    running += [asyncio.create_task(worker.run(metrics.worker_restarts.inc)) for worker in workers]
    ends: list[asyncio.Future[Any]] = [stop_signal, *running]
    with _reload_on_hangup(engines):
        async with control(engines.control, engines.reload):
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    how = stop_signal.result() if stop_signal.done() else signal.SIGINT
    logger.info("stopping", reason=how.name if stop_signal.done() else "a process of ours cannot go on")
    patience_s = settings.grace_s + settings.timeout_s + DRAIN_SLACK_S
    stopping = [asyncio.create_task(worker.stop(how, patience_s)) for worker in workers]
    listener.close()  # so that with the last worker's end nobody is left waiting in line
    await asyncio.wait(stopping)
    await engines.stop()
    return _status(await asyncio.gather(*running, return_exceptions=True))


def _workers(settings: Settings, listener: socket.socket, engines: EngineHosts) -> list[Child]:
    rate_memory = Buckets.create() if settings.rate_limit else 0
    orders = {
        "settings": settings.model_dump(mode="json"),
        "engines": {name: str(engine.path) for name, engine in engines.items()},
        "control": str(engines.control),
        "listener": listener.fileno(),
        "rate_memory": rate_memory,
        "url": _url(settings, *listener.getsockname()[:2]),
    }
    return [
        Child("worker", {**orders, "number": number}, [listener.fileno(), *filter(None, [rate_memory])], SILENCE_S)
        for number in range(settings.http_workers)
    ]


@contextmanager
def _reload_on_hangup(engines: EngineHosts) -> Iterator[None]:
    """Load all models anew on SIGHUP."""
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(_reload(engines))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # it shall not end us now
        for task in reloads:
            task.cancel()


async def _reload(engines: EngineHosts) -> None:
    try:
        await engines.reload()
    except Refused as refusal:
        logger.error("model not reloaded, the one before goes on", reason=str(refusal))


def _stop_signal() -> asyncio.Future[signal.Signals]:
    """The signal to stop, once it is there. Ctrl-C after that ends us, and with us all of ours, at once."""
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None
    received: asyncio.Future[signal.Signals] = loop.create_future()

    def note(sig: signal.Signals) -> None:
        if not received.done():
            received.set_result(sig)
        loop.add_signal_handler(signal.SIGINT, serving.cancel)

    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, note, sig)
    return received


def _status(ends: list[BaseException | None]) -> int:
    """0 if all ended because they were asked to; who refused has said why in the log."""
    faults = [end for end in ends if end is not None]
    for fault in faults:
        if not isinstance(fault, Refused):
            logger.critical("cannot go on", reason=repr(fault))
    return REFUSED if faults else 0
