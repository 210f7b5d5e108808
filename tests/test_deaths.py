"""Engines that die: whose fault it may be, and what is thought of them."""

import asyncio
import time
from pathlib import Path

import pytest
from fakes import FakeDevice, running_engine
from linking import DECODERS, ask, linked, until

from service.errors import InferenceFailed
from service.link import DEATHS, WITHIN_S, Link
from service.session import CULPRIT, SUSPECT


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


def free(link: Link) -> int:
    assert link._session is not None
    return len(link._session._free)


async def named_at_last(link: Link, number: int) -> int:
    """What a picture is said to be of, as soon as there is an engine."""
    await until(lambda: link.ailments() == [])
    return await ask(link, number)


async def test_a_picture_that_kills_one_engine_after_the_other_is_given_up_and_the_others_are_answered(
    device: FakeDevice, path: Path
) -> None:
    device.deadly = {5}
    async with linked(path, when_well=False) as link:
        asked = [asyncio.create_task(named_at_last(link, number)) for number in range(9)]
        for death in range(1, CULPRIT + 1):
            assert not link.hopeless
            async with running_engine(device, path):
                await until(lambda: len(link._deaths_s) == death)  # noqa: B023
        assert link.hopeless
        with pytest.raises(InferenceFailed):
            await asked.pop(5)
        async with running_engine(device, path):
            assert await asyncio.gather(*asked) == [0, 1, 2, 3, 4, 6, 7, 8]
            await until(lambda: free(link) == 64)
    assert [batch for batch in device.batches if 5 in batch][-1] == [5]


async def test_whoever_leaves_while_suspects_wait_for_their_turn_leaves_nothing_behind(
    device: FakeDevice, path: Path
) -> None:
    async with linked(path, when_well=False) as link:
        asked: list[asyncio.Task[int]] = []
        for _ in range(SUSPECT):
            device.gate.clear()
            async with running_engine(device, path) as engine:
                await until(lambda: link.ailments() == [])
                asked = asked or [asyncio.create_task(ask(link, number)) for number in range(4)]
                await until(lambda: engine._queue.depth + engine._queue.in_run == 4)
            await until(link.ailments)
        device.gate.clear()
        async with running_engine(device, path) as engine:
            await until(lambda: engine._queue.in_run == 1)
            assert engine._queue.depth == 0  # the others wait until that one is settled
            for task in asked[1:3]:
                task.cancel()
            await asyncio.wait(asked[1:3])
            device.gate.set()
            assert [await asked[0], await asked[3]] == [0, 3]
            await until(lambda: free(link) == 64)


def test_deaths_make_it_hopeless_when_they_come_close_together_until_an_engine_has_lived_for_long() -> None:
    def after(*deaths_s: float) -> bool:
        link = Link(1, DECODERS)
        for death_s in deaths_s:
            link._note_death(time.monotonic() + death_s)
        return link.hopeless

    assert not after(0, 1)
    assert after(0, 1, 59)
    assert not after(0, 30, 61)
    assert after(0, 30, 61, 62)


async def test_it_is_not_hopeless_any_more_when_an_engine_has_lived_for_long(device: FakeDevice, path: Path) -> None:
    async with linked(path, when_well=False) as link:
        for _ in range(DEATHS):
            link._note_death(time.monotonic() - WITHIN_S - 1)
        assert link.hopeless  # for there is none
        async with running_engine(device, path):
            await until(lambda: not link.hopeless)
