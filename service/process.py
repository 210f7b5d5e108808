"""Our processes, seen from both sides: a child that is kept running, and the child's tie to its parent.

A child's standard input is its lifeline. The first line says what to do; the end of it says that the parent is gone,
however that came to pass, and the child goes too.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from service import metrics
from service.logs import logger

REFUSED = 78
"""Exit status of a process that cannot work as it is set up: to start it again is of no use (EX_CONFIG)."""
SPELL_S = 10.0
"""A process that ran for so long is started again at once; below, after longer and longer pauses."""
LONGEST_PAUSE_S = 10.0


class Refused(Exception):
    """A child says that it cannot work as it is set up. It has said why in the log."""


class Child:
    """A process of ours that is started again when it ends.

    Args:
        role: the hidden command of `volo` that it runs, such as ``engine``.
        orders: what it is told; anything that JSON can say.
        inherit: file descriptors it inherits under the same numbers.
    """

    def __init__(self, role: str, orders: dict[str, Any], inherit: Sequence[int] = ()) -> None:
        self._role = role
        self._orders = orders
        self._inherit = tuple(inherit)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def run(self, on_restart: Callable[[], None] = lambda: None) -> None:
        """Keep it running until ``stop``.

        Raises:
            Refused: it cannot work as it is set up.
        """
        pause_s = 0.0
        while not self._stopping:
            started_s = time.monotonic()
            self._process = process = await self._start()
            status = await process.wait()
            metrics.forget(process.pid)
            if self._stopping:
                return
            if status == REFUSED:
                raise Refused(self._role)
            pause_s = 0.0 if time.monotonic() - started_s > SPELL_S else min(LONGEST_PAUSE_S, 2 * pause_s + 0.25)
            logger.error("process ended", role=self._role, pid=process.pid, status=status, again_in_s=pause_s)
            on_restart()
            await asyncio.sleep(pause_s)

    async def stop(self, how: signal.Signals, patience_s: float) -> None:
        """Ask it to end, and end it if it has not after ``patience_s``."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
        except TimeoutError:
            logger.error("process did not end when asked", role=self._role, pid=process.pid)
            process.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service",
            self._role,
            stdin=asyncio.subprocess.PIPE,
            pass_fds=self._inherit,
            process_group=0,  # so that Ctrl-C reaches the parent alone, and the children hear of it from there
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._orders).encode() + b"\n")
        return process


def receive_orders() -> dict[str, Any]:
    """In a child: what the parent wants. From here on the child ends when the parent does."""
    orders: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
    return orders


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
