"""A device that is the real one but for pictures of certain colours, which make it fail."""

import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DIES, RAISES, NAN, HANGS, STICKS, FILLS = ((250, 1, number) for number in range(6))
"""What comes of a picture all of this colour: the process is gone, its run raises, its scores are NaN, its run does not
come back, all runs fail from then on, there is memory for runs of two only from then on."""
ROOM = 2


def inject() -> None:
    """Put the device with faults where the engine looks for its own."""
    from service import engine_process
    from service.device import Device, DeviceFault, OutOfMemory
    from service.outputs import Outputs, Wants

    class Faulty(Device):
        broken = full = False

        def warm_up(self, rounds: int = 1) -> dict[int, float]:
            cost_s = super().warm_up(rounds)[1]
            return dict.fromkeys((1, 2, 4, 8), cost_s)  # large runs, as on a card

        def run(
            self,
            pictures: Sequence[NDArray[np.uint8]],
            padded_size: int,
            alone: bool = False,
            wants: Wants = Wants.NONE,
        ) -> Outputs:
            colours = [_colour(picture) for picture in pictures]
            self.broken |= STICKS in colours
            self.full |= FILLS in colours
            if DIES in colours:
                os._exit(139)
            if HANGS in colours:
                threading.Event().wait()
            if self.broken:
                raise DeviceFault("device-side assert triggered")
            if self.full and padded_size > ROOM:
                raise OutOfMemory("told to be full")
            if RAISES in colours:
                raise RuntimeError("told to raise")
            outputs = super().run(pictures, padded_size, alone, wants)
            outputs.logits[[colour == NAN for colour in colours]] = np.nan
            return outputs

    vars(engine_process)["Device"] = Faulty


def _colour(picture: NDArray[np.uint8]) -> tuple[int, ...] | None:
    """Of a picture that has only one."""
    corner = picture[0, 0]
    return tuple(int(part) for part in corner) if (picture == corner).all() else None
