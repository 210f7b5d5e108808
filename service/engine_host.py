"""Where an engine lives: the socket that outlasts it, and the process that is started again."""

import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service import metrics
from service.process import Child
from service.settings import Settings

STOP_S = 5.0


@dataclass(frozen=True)
class EngineHost:
    """An engine's address and its process, which runs as long as ``run`` does."""

    path: Path
    child: Child

    async def run(self) -> None:
        """Keep the engine running.

        Raises:
            Refused: it cannot work as it is set up.
        """
        await self.child.run(on_restart=metrics.engine_restarts.inc)

    async def stop(self) -> None:
        """End the engine; what it has not answered is lost, so the workers go first."""
        await self.child.stop(signal.SIGTERM, STOP_S)


@contextmanager
def engine_host(settings: Settings) -> Iterator[EngineHost]:
    """A socket for workers to connect to, also while no engine is there yet, and an engine to listen on it."""
    with (
        tempfile.TemporaryDirectory(prefix="volo-") as folder,  # readable by this user alone
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = Path(folder) / "engine.sock"
        listener.bind(str(path))
        listener.listen(128)
        orders = {"settings": settings.model_dump(mode="json"), "listener": listener.fileno()}
        yield EngineHost(path, Child("engine", orders, inherit=[listener.fileno()]))
