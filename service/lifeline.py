"""A child's tie to its parent.

Its standard input is its lifeline. The first line says what to do; the end of it says that the parent is gone, however
that came to pass, and the child goes too; the kernel sees to it where the child cannot. On its standard output it says
that it is ready, and that it still is alive, or why it refuses.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

READY = b"ready: "
ALIVE = b"alive"
REFUSAL = b"refused: "

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def receive_orders() -> dict[str, Any]:
    """In a child: what the parent wants. From here on the child ends when the parent does, which may not have come to
    tidy up: of the folders that the orders call ``litter`` nothing is left then.

    Raises:
        ValueError: there is no parent that gives orders.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # asked to end before it listens to signals, it does so in silence
    tempfile.tempdir = os.environ.get("TMPDIR")  # of itself it would look for another one if the disk is full now
    if sys.stdin.isatty():
        raise ValueError("nobody gives orders from a terminal")
    orders: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    _signal_when_parent_ends(signal.SIGCONT)  # one that is stopped shall see it
    tied = threading.Event()
    watch = [orders.get("litter", []), tied]
    threading.Thread(target=_end_with_parent, args=watch, name="lifeline", daemon=True).start()
    tied.wait()  # whoever holds the interpreter from here on might never let it get there
    return orders


def report_ready(how: str = "") -> None:
    """In a child: tell the parent that it works, and how if that is of use to it."""
    _report(READY + how.encode())


def report_alive() -> None:
    """In a child: tell the parent that it does not hang."""
    _report(ALIVE)


def report_refusal(reason: str) -> None:
    """In a child: tell the parent why it cannot work as it is set up."""
    _report(REFUSAL + " ".join(reason.split()).encode())


def _report(line: bytes) -> None:
    os.write(1, line + b"\n")


def _signal_when_parent_ends(signal_: signal.Signals) -> None:
    """Have the kernel send it to this process. Each thread may name one.

    The parent is, for the kernel, the thread that started this process: one that must live as long as the parent does.
    Whose parent has ended already learns of that by the lifeline alone.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal_)


def _end_with_parent(litter: Sequence[str], tied: threading.Event) -> None:
    # If the interpreter is held by whoever does not come back, this thread gets no turn. A handler in C needs none:
    # `alarm` is called with the signal's number, which is 1, and so ends the process in one second.
    _LIBC.signal(signal.SIGHUP, _LIBC.alarm)
    _signal_when_parent_ends(signal.SIGHUP)
    tied.set()
    os.read(sys.stdin.fileno(), 1)
    for folder in litter:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
