"""Where engines live: an address that outlasts them, and the process that is started again, or replaced in mid-flow."""

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from service import metrics, multiprocess
from service.logs import logger
from service.process import Child, Refused
from service.relapses import Relapses
from service.settings import Settings

STOP_SLACK_S = 5.0
SILENCE_S = 10.0
"""An engine that has given no sign of life for so long hangs; it gives one every second."""


class _Process:
    """An engine's process and the socket that it listens on, which its parent holds for those that come after it."""

    def __init__(self, orders: Mapping[str, object], path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        path.chmod(0o600)
        self.listener.listen(128)
        listener = self.listener.fileno()
        self.child = Child("engine", {**orders, "listener": listener}, inherit=[listener], silence_s=SILENCE_S)


class EngineHost:
    """One model's engine, behind an address, ``path``, that workers can connect to at any time."""

    def __init__(self, name: str, source: str, settings: Settings, path: Path) -> None:
        self.name = name
        self.path = path
        metrics.engine_restarts.labels(name)  # so that the first one is seen as a step from 0
        self._settings = settings.model_copy(update={"model": source, "models": ""}).model_dump(mode="json")
        self._orders = {
            "name": name,
            "settings": self._settings,
            "litter": [str(path.parent), *multiprocess.litter()],
        }
        self._relapses = Relapses(name, path)
        self._patience_s = settings.timeout_s + STOP_SLACK_S
        self._process = _Process(self._orders, path)
        self._running: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._stopping = False

    async def run(self) -> None:
        """Keep the engine running, and whichever takes its place.

        Raises:
            Refused: it cannot work as it is set up.
        """
        running = self._running = self._run(self._process)
        while True:
            await running
            if running is self._running:
                return
            running = self._running

    async def reload(self) -> None:
        """Have a new engine load the model anew beside the old one, and take its place once it is warm.

        Raises:
            Refused: it cannot; the message says why, and the old engine goes on.
        """
        async with self._reloading:
            beside = self.path.with_suffix(".next")
            beside.unlink(missing_ok=True)
            successor = _Process(self._orders, beside)
            running = self._run(successor)
            try:
                await successor.child.ready()
                if self._stopping:  # nobody would end it
                    raise Refused("the service is ending")
            except BaseException:
                await self._end(successor, running, signal.SIGKILL)
                raise
            os.replace(beside, self.path)  # who connects from now on finds the new one
            before, self._process = self._process, successor
            running_before, self._running = self._running, running
            self._relapses.forget()
            self._relapses.serves()
            logger.info("model reloaded", model=self.name)
            if running_before:
                await self._end(before, running_before, signal.SIGTERM)

    async def stop(self) -> None:
        """End the engine, after the workers have left it. None takes its place any more."""
        self._stopping = True
        await self._process.child.stop(signal.SIGTERM, self._patience_s)

    def close(self) -> None:
        self._process.listener.close()

    def _run(self, process: _Process) -> "asyncio.Task[None]":
        return asyncio.create_task(
            process.child.run(partial(self._on_restart, process), partial(self._on_ready, process))
        )

    def _on_restart(self, process: _Process) -> None:
        if process is self._process:
            metrics.engine_restarts.labels(self.name).inc()
            self._relapses.ended()

    def _on_ready(self, process: _Process, device: str) -> None:
        if device.startswith("cuda"):  # for `auto`: where a GPU is lost the next one shall not do without
            self._settings["device"] = device
        if process is self._process:
            self._relapses.serves()

    async def _end(self, process: _Process, running: "asyncio.Task[None]", how: signal.Signals) -> None:
        await process.child.stop(how, self._patience_s)
        await asyncio.gather(running, return_exceptions=True)
        process.listener.close()


class EngineHosts(dict[str, EngineHost]):
    """The engines of all models, by name; ``control`` is an address for whoever runs them to be asked at."""

    def __init__(self, control: Path) -> None:
        super().__init__()
        self.control = control

    async def run(self) -> None:
        """Keep them all running; raise as ``EngineHost.run`` does."""
        await asyncio.gather(*(host.run() for host in self.values()))

    async def reload(self, name: str | None = None) -> list[str]:
        """Load one model anew, or all, one after the other.

        Returns:
            The names of those that were loaded.

        Raises:
            Refused: one cannot be, and goes on as it was; the message says which and why. Those before it are loaded.
        """
        names = list(self) if name is None else [name]
        for each in names:
            try:
                await self[each].reload()
            except Refused as refusal:
                raise Refused(f"{each}: {refusal}") from refusal
        return names

    async def stop(self) -> None:
        await asyncio.gather(*(host.stop() for host in self.values()))


@contextmanager
def engine_hosts(settings: Settings) -> Iterator[EngineHosts]:
    """An engine for each model that is to be served, and a socket for workers to connect to before it is there."""
    with tempfile.TemporaryDirectory(prefix="volo-") as folder, ExitStack() as stack:  # readable by this user alone
        hosts = EngineHosts(Path(folder) / "control.sock")
        for number, (name, source) in enumerate(settings.sources.items()):
            host = EngineHost(name, source, settings, Path(folder) / f"engine-{number}.sock")
            hosts[name] = stack.enter_context(closing(host))
        yield hosts
