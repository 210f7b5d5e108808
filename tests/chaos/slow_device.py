"""A device whose runs take their time and no processor: its capacity is known, and small."""

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from running import ROOT, Service, serving

LARGEST, RUN_S = 8, 0.2


def served(folder: Path, run_s: float = RUN_S, /, **settings: str) -> AbstractContextManager[Service]:
    """A service with such a device, of which every run takes so long."""
    path = os.pathsep.join([str(ROOT / "tests/chaos"), str(ROOT / "tests"), str(ROOT)])
    injected = {"PYTHONPATH": path, "CHAOS_DEVICE": "slow_device", "CHAOS_RUN_S": str(run_s)}
    return serving(folder, VOLO_MAX_BATCH=str(LARGEST), **injected, **settings)


def inject() -> None:
    """Put it where the engine looks for its own."""
    from service import engine_process
    from service.device import Device
    from service.outputs import Outputs, Wants

    run_s = float(os.environ["CHAOS_RUN_S"])

    class Slow(Device):
        def warm_up(self, rounds: int = 1) -> dict[int, float]:
            self.lanes = 1
            return dict.fromkeys((1, 2, 4, LARGEST), run_s)

        def run(
            self,
            pictures: Sequence[NDArray[np.uint8]],
            padded_size: int,
            alone: bool = False,
            wants: Wants = Wants.NONE,
        ) -> Outputs:
            first = super().run(pictures[:1], 1)
            time.sleep(run_s)
            return Outputs(np.repeat(first.logits, len(pictures), axis=0))

    vars(engine_process)["Device"] = Slow
