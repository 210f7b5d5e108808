"""Who goes first where processors are short: those who answer, before those who compute."""

import contextlib
import os
import threading

NICER = 5
"""On the scale of ``nice``: a third of the weight of a thread that is not."""


def compute_behind() -> None:
    """Let this thread, and those that it starts, compute with what event loops leave of the processors.

    A loop takes little, and is only of use at once: if it waits behind decoders and a model on the CPU, whoever comes
    is refused too late, and whoever is in time is answered too late.
    """
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):  # a thread has no priority of its own on every system
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICER)
