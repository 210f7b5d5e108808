"""Links to engines, for the tests of both ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.decoders import Decoders
from service.link import Link, Load
from service.wire import Answer, ModelCard

DECODERS = Decoders(2)


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds; it may not take 20 s."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event for what the other end knows
            await asyncio.sleep(0.002)


def painted(number: int) -> Load:
    """A loader of a picture that the fake device takes for one of class ``number``."""

    def load(pixels: NDArray[np.uint8], card: ModelCard) -> None:
        pixels[:] = number

    return load


@asynccontextmanager
async def linked(path: Path, slots: int = 64, *, when_well: bool = True) -> AsyncIterator[Link]:
    """A link to the engines at ``path``, once it is well or at once."""
    link = Link(slots, DECODERS)
    running = asyncio.create_task(link.run(path))
    try:
        await until(lambda: not when_well or link.ailments() == [])
        yield link
    finally:
        running.cancel()
        await asyncio.wait([running])


async def ask(link: Link, number: int, patience_s: float = 30.0) -> int:
    """Have a picture of class ``number`` scored: the class it is said to be of."""
    return (await ask_fully(link, number, patience_s))[0]


async def ask_fully(link: Link, number: int, patience_s: float = 30.0) -> tuple[int, Answer]:
    """The same, with the engine's whole answer."""
    with link.slot() as slot:
        await link.load(slot, painted(number))
        answer = await link.classify(slot, time.monotonic() + patience_s)
        return int(slot.outputs.logits.argmax()), answer
