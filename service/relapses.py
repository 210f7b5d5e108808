"""An engine that ends again and again, and how the HTTP workers learn of it: by a note beside its socket."""

import asyncio
from pathlib import Path

from service.logs import logger

RELAPSES = 3
"""After so many ends in a row whoever runs the service shall act: a fresh container may get a device that works."""
RECOVERED_S = 60.0
"""An engine that has served for so long has recovered; the ends before it do not count any more."""


class Relapses:
    """Counts the ends of an engine in a row, none of which had served for ``RECOVERED_S``."""

    def __init__(self, model: str, path: Path) -> None:
        self._model = model
        self._note = _note(path)
        self._ends = 0
        self._recovery: asyncio.TimerHandle | None = None

    def serves(self) -> None:
        """An engine is there."""
        self._recovery = asyncio.get_running_loop().call_later(RECOVERED_S, self.forget)

    def ended(self) -> None:
        """It is gone, and nobody has asked it to go."""
        self._hold_recovery()
        self._ends += 1
        if self._ends == RELAPSES:
            logger.critical("an engine ends again and again, not live until one stays", model=self._model)
            try:
                self._note.touch()
            except OSError as error:  # no room: the engine shall be started again all the same
                logger.error("cannot tell the workers", reason=repr(error))

    def forget(self) -> None:
        """It has recovered, or another one has taken its place."""
        self._hold_recovery()
        if self._ends >= RELAPSES:
            logger.info("an engine stays, live again", model=self._model)
        self._ends = 0
        self._note.unlink(missing_ok=True)

    def _hold_recovery(self) -> None:
        if self._recovery:
            self._recovery.cancel()


def relapsed(path: Path) -> bool:
    """Whether the engine at this address ends again and again; for other processes to ask."""
    return _note(path).exists()


def _note(path: Path) -> Path:
    return path.with_suffix(".relapsed")
