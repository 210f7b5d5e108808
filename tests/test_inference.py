"""Pictures in the background wait for what others leave, and hold nobody up."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from fakes import CARD, FakeDevice, running_engine
from linking import linked, until

from service.accounting import Record
from service.errors import Overloaded
from service.inference import Models
from service.settings import Settings

SETTINGS = Settings(max_batch=2)


@pytest.fixture
def devices() -> dict[str, FakeDevice]:
    return {"first": FakeDevice(), "second": FakeDevice()}


@pytest.fixture
async def models(devices: dict[str, FakeDevice], tmp_path: Path) -> AsyncIterator[Models]:
    first, second = tmp_path / "first.sock", tmp_path / "second.sock"
    async with (
        running_engine(devices["first"], first, limit=1),
        running_engine(devices["second"], second),
        linked(first) as link,
        linked(second) as another,
    ):
        yield Models({"first": link, "second": another}, SETTINGS)


async def named(models: Models, number: int, model: str = "first", *, background: bool = False) -> int:
    """The class that a picture of class ``number`` is said to be of."""
    picture = np.full((8, 8, 3), number, np.uint8)
    inference = await models.infer(picture, Record(""), model, background=background)
    return int(inference.scores.argmax())


async def test_in_the_background_one_waits_for_room_instead_of_being_refused(
    models: Models, devices: dict[str, FakeDevice]
) -> None:
    devices["first"].gate.clear()
    asked = [asyncio.create_task(named(models, 0))]
    await devices["first"].under_way()
    asked += [asyncio.create_task(named(models, number, background=True)) for number in (1, 2, 3)]
    await until(lambda: models.link("first")._session.under_way == 2)  # type: ignore[union-attr]
    devices["first"].gate.set()
    assert await asyncio.gather(*asked) == [0, 1, 2, 3]


async def test_one_models_background_does_not_wait_for_anothers(models: Models, devices: dict[str, FakeDevice]) -> None:
    devices["first"].gate.clear()
    stuck = [asyncio.create_task(named(models, number, background=True)) for number in range(5)]
    await devices["first"].under_way()
    async with asyncio.timeout(20):
        assert await named(models, 7, "second", background=True) == 7
    devices["first"].gate.set()
    assert await asyncio.gather(*stuck) == [*range(5)]


async def test_the_background_goes_on_with_the_next_engine_when_its_own_dies_on_leaving(tmp_path: Path) -> None:
    device, path, beside = FakeDevice(), tmp_path / "engine.sock", tmp_path / "beside.sock"
    device.gate.clear()
    async with linked(path, when_well=False) as link:
        models = Models({"first": link}, SETTINGS)
        async with running_engine(FakeDevice(), beside, card=dataclasses.replace(CARD, device="another")):
            async with running_engine(device, path) as engine:
                await until(lambda: not link.ailments())
                asked = asyncio.create_task(named(models, 5, background=True))
                await device.under_way()
                old = link._session
                beside.replace(path)
                engine.retire()
                await until(lambda: link._session is not old)
            assert await asked == 5


async def test_single_requests_leave_the_background_the_slots_that_it_may_have(tmp_path: Path) -> None:
    device, path = FakeDevice(), tmp_path / "engine.sock"
    device.gate.clear()
    async with running_engine(device, path), linked(path, slots=SETTINGS.max_batch + 1) as link:
        models = Models({"first": link}, SETTINGS)
        asked = [asyncio.create_task(named(models, 0))]
        await device.under_way()
        with pytest.raises(Overloaded, match="under way"):
            await named(models, 1)
        asked += [asyncio.create_task(named(models, number, background=True)) for number in (2, 3)]
        await until(lambda: link._session.under_way == 3)  # type: ignore[union-attr]
        device.gate.set()
        assert await asyncio.gather(*asked) == [0, 2, 3]


async def test_what_not_even_a_run_of_its_own_could_meet_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    device, path = FakeDevice(), tmp_path / "engine.sock"
    async with running_engine(device, path, cost_s=1.0), linked(path) as link:
        models = Models({"first": link}, SETTINGS)
        record = Record("")
        record.deadline_s = record.arrival_s + 0.5
        with pytest.raises(Overloaded, match=r"takes 1 s; .* 0\.\d+ s left") as refused:
            await models.infer(b"no picture", record)
        assert refused.value.reason == "deadline"
