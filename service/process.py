"""Our processes, as their parent sees them: children that are kept running."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service import multiprocess
from service.lifeline import READY, REFUSAL
from service.logs import logger

REFUSED = 78
"""Exit status of a process that cannot work as it is set up: to start it again is of no use (EX_CONFIG)."""
INTERRUPTED = 130
"""Exit status of a command that Ctrl-C has cut off, as shells have it."""
THAW_S = 3.0
"""One that is silent gets so long more: perhaps we all have been frozen, and it has had no time to speak."""
START_SILENCE_S = 60.0
"""One that has not yet reported that it is ready, and has used no processor time at all for so long, hangs."""
SPELL_S = 10.0
"""A process that ran for so long, or was ready, is started again at once; others after longer and longer pauses."""
LONGEST_PAUSE_S = 10.0
REFUSALS = 3
"""One that has worked is given up when it has refused so often in a row: a device that is lost, say, does not come back
to whom it was given. Whoever runs us shall see it, and can start us afresh."""

FORGET_AGAIN_S = 0.05
"""After so long it is tried again to add up what a process counted."""


class Refused(Exception):
    """A child says that it cannot work as it is set up. It has said why in the log."""


class Child:
    """A process of ours that is started again when it ends.

    Args:
        role: what it is, such as ``engine``.
        orders: what it is told; anything that JSON can say.
        inherit: file descriptors it inherits under the same numbers.
        silence_s: one that has reported that it is ready, and then nothing for so long, hangs and is ended; before that
            it may be silent for as long as it does anything, such as download.
    """

    def __init__(
        self, role: str, orders: dict[str, Any], inherit: Sequence[int] = (), silence_s: float | None = None
    ) -> None:
        self._role = role
        self._orders = orders
        self._inherit = tuple(inherit)
        self._silence_s = silence_s
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._reported = asyncio.Event()
        self._refusal = ""
        self._was_ready = False
        self._on_ready: Callable[[str], None] = lambda _: None
        self._forgetting: set[asyncio.Task[None]] = set()

    async def ready(self) -> None:
        """Return when it reports for the first time that it is ready.

        Raises:
            Refused: it has ended instead; the message says why.
        """
        await self._reported.wait()
        if self._refusal:
            raise Refused(self._refusal)

    async def run(
        self, on_restart: Callable[[], None] = lambda: None, on_ready: Callable[[str], None] = lambda _: None
    ) -> None:
        """Keep it running until ``stop``; tell each time that it has ended, and that it is ready, with what it says.

        Raises:
            Refused: it cannot work as it is set up.
            OSError: it cannot be started.
        """
        self._on_ready = on_ready
        try:
            await self._keep_running(on_restart)
        except Exception as error:
            self._will_not_be_ready(f"it cannot be run: {error}")
            raise

    async def stop(self, how: signal.Signals, patience_s: float) -> None:
        """Ask it to end, and end it if it has not after ``patience_s``."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        _signal(process, how)
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
        except TimeoutError:
            logger.error("process did not end when asked", role=self._role, pid=process.pid)
            _signal(process, signal.SIGKILL)

    async def _keep_running(self, on_restart: Callable[[], None]) -> None:
        pause_s, worked, refusals = 0.0, False, 0
        while not self._stopping.is_set():
            started_s = time.monotonic()
            status = await self._run_once()
            if self._stopping.is_set():
                return
            refusals = refusals + 1 if status == REFUSED else 0
            if refusals == (REFUSALS if worked else 1):
                raise Refused(f"{self._role} refused")
            worked = worked or time.monotonic() - started_s > SPELL_S  # then it is not for how it is set up
            at_once = self._was_ready or time.monotonic() - started_s > SPELL_S
            pause_s = 0.0 if at_once else min(LONGEST_PAUSE_S, 2 * pause_s + 0.25)
            logger.error("process ended", role=self._role, status=status, again_in_s=pause_s)
            on_restart()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _run_once(self) -> int:
        """Run it to its end: the exit status."""
        process = await self._start()
        if self._stopping.is_set():  # while it was being started
            _signal(process, signal.SIGKILL)
        self._process, self._was_ready = process, False
        refusal = await self._listen(process)
        status = await process.wait()
        self._process = None
        self._will_not_be_ready(refusal or f"it ended with status {status}")
        forgetting = asyncio.create_task(_forget(process.pid))  # beside us: the next one shall not wait for that
        self._forgetting.add(forgetting)
        forgetting.add_done_callback(self._forgetting.discard)
        return status

    def _will_not_be_ready(self, why: str) -> None:
        """Tell whoever waits for it, unless it was ready before."""
        if not self._reported.is_set():
            self._refusal = why
            self._reported.set()

    async def _listen(self, process: asyncio.subprocess.Process) -> str:
        """Take in its reports until it ends: why it refused, if it did."""
        assert process.stdout is not None
        refusal, busy_s = "", 0.0
        silence_s = None if self._silence_s is None else START_SILENCE_S
        while True:
            try:
                line = await _report_from(process.stdout, silence_s)
            except ValueError:  # longer than any line of ours: a library has written there
                continue
            except TimeoutError:
                before_s, busy_s = busy_s, _processor_s(process.pid)
                if not self._was_ready and busy_s > before_s:
                    continue
                logger.error("process hangs, ending it", role=self._role, pid=process.pid, silent_s=silence_s)
                _signal(process, signal.SIGKILL)
                silence_s = None
                continue
            if not line:
                return refusal
            if line.startswith(READY):
                self._reported.set()
                self._was_ready = True
                silence_s = self._silence_s
                self._on_ready(line.removeprefix(READY).decode().strip())
            elif line.startswith(REFUSAL):
                refusal = line.removeprefix(REFUSAL).decode().strip()

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "service",
            f"_{self._role}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._inherit,
            # it finds the modules that we have found, and none that happen to lie where we were started
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": tempfile.gettempdir()},
            start_new_session=True,  # so that Ctrl-C reaches the parent alone, and the children hear of it from there
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._orders).encode() + b"\n")
        return process


async def _report_from(output: asyncio.StreamReader, silence_s: float | None) -> bytes:
    """A child's next line; raise TimeoutError if none comes for so long."""
    try:
        return await asyncio.wait_for(output.readline(), silence_s)
    except TimeoutError:
        return await asyncio.wait_for(output.readline(), THAW_S)


def _processor_s(pid: int) -> float:
    """The processor time that a process has used; none if it is gone."""
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def _forget(pid: int) -> None:
    """Add up what a process counted that has ended, as soon as nobody is reading. A reader that is stopped would keep a
    loop that waits for it from noticing just that."""
    try:
        while not multiprocess.forget(pid):  # noqa: ASYNC110 - other processes hold the lock, and set no event
            await asyncio.sleep(FORGET_AGAIN_S)
    except Exception:  # its file is torn, say: no reason to leave its place empty
        logger.exception("what a process counted is lost", pid=pid)


def _signal(process: asyncio.subprocess.Process, signal_: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal_)


@asynccontextmanager
async def needed(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do the work beside the application, and end the process if it fails: nobody shall wait for the dead."""

    def on_done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            logger.critical("cannot go on", reason=repr(error))
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work)
    task.add_done_callback(on_done)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
