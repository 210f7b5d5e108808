"""Who goes first where processors are short."""

import asyncio
import os
import threading

from service.decoders import Decoders
from service.priority import NICER


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_decoders_work_behind_the_loop_that_asked_them() -> None:
    found: list[int] = []
    decoders = Decoders(1)
    loops = _nice()
    await asyncio.wait_for(decoders.submit(lambda: found.append(_nice())).done, 10)
    assert (found, _nice()) == ([loops + NICER], loops)
