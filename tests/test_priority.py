"""Who goes first where processors are short."""

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import CARD, FakeDevice, running_engine
from linking import ask, linked
from numpy.typing import NDArray

from service.decoders import Decoders
from service.outputs import Outputs, Wants
from service.priority import NICER


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_decoders_work_behind_the_loop_that_asked_them() -> None:
    found: list[int] = []
    decoders = Decoders(1)
    loops = _nice()
    await asyncio.wait_for(decoders.submit(lambda: found.append(_nice())).done, 10)
    assert (found, _nice()) == ([loops + NICER], loops)


class _NotingDevice(FakeDevice):
    """Notes how nice the threads are that it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.nice: set[int] = set()

    def run(
        self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, alone: bool = False, wants: Wants = Wants.NONE
    ) -> Outputs:
        self.nice.add(_nice())
        return super().run(pictures, padded_size, alone, wants)


@pytest.mark.parametrize(("name", "nicer"), [("cpu", NICER), ("cuda:0", 0)])
async def test_a_model_on_the_processor_computes_behind_the_engines_loop(tmp_path: Path, name: str, nicer: int) -> None:
    path, device = tmp_path / "engine.sock", _NotingDevice()
    loops = _nice()
    async with running_engine(device, path, card=replace(CARD, device=name)), linked(path) as link:
        assert await ask(link, 1) == 1
    assert (device.nice, _nice()) == ({loops + nicer}, loops)
