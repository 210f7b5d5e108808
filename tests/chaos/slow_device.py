"""A device whose runs take their time and no processor: its capacity is known, and small."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGEST, RUN_S = 8, 0.2


def inject() -> None:
    """Put it where the engine looks for its own."""
    from service import engine_process
    from service.device import Device
    from service.outputs import Outputs, Wants

    class Slow(Device):
        def warm_up(self, rounds: int = 1) -> dict[int, float]:
            self.lanes = 1
            return dict.fromkeys((1, 2, 4, LARGEST), RUN_S)

        def run(
            self,
            pictures: Sequence[NDArray[np.uint8]],
            padded_size: int,
            alone: bool = False,
            wants: Wants = Wants.NONE,
        ) -> Outputs:
            first = super().run(pictures[:1], 1)
            time.sleep(RUN_S)
            return Outputs(np.repeat(first.logits, len(pictures), axis=0))

    vars(engine_process)["Device"] = Slow
