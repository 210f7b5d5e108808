"""An engine that ends again and again makes the service not live, until one stays."""

import asyncio
from pathlib import Path

import pytest
from calling import application, calling, eventually, outcomes, serving_engine

from service.relapses import RELAPSES, Relapses, relapsed


@pytest.fixture
async def relapses(tmp_path: Path) -> Relapses:
    return Relapses("pets", tmp_path / "engine.sock")


async def test_the_third_end_in_a_row_counts(relapses: Relapses, tmp_path: Path) -> None:
    for end in range(RELAPSES):
        assert not relapsed(tmp_path / "engine.sock"), end
        relapses.serves()
        relapses.ended()
    assert relapsed(tmp_path / "engine.sock")
    relapses.ended()
    relapses.forget()
    assert not relapsed(tmp_path / "engine.sock")


async def test_an_engine_that_has_served_for_long_has_recovered(
    relapses: Relapses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(RELAPSES):
        relapses.ended()
    monkeypatch.setattr("service.relapses.RECOVERED_S", 0.0)  # nobody wants to wait for as long as it is
    relapses.serves()
    await eventually(lambda: not relapsed(tmp_path / "engine.sock"))
    for _ in range(RELAPSES - 1):
        relapses.ended()
    assert not relapsed(tmp_path / "engine.sock")


async def test_one_that_ends_before_it_has_served_for_long_does_not_recover_afterwards(
    relapses: Relapses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.relapses.RECOVERED_S", 0.01)
    for _ in range(RELAPSES):
        relapses.serves()
        relapses.ended()
    await asyncio.sleep(0.02)  # until it would have recovered
    assert relapsed(tmp_path / "engine.sock")


async def test_a_folder_without_room_for_the_note_ends_nothing(tmp_path: Path) -> None:
    relapses = Relapses("pets", tmp_path / "no such folder" / "engine.sock")
    for _ in range(RELAPSES):
        relapses.ended()


async def test_not_live_is_told_in_every_dialect() -> None:
    async with serving_engine() as engine, calling(application(engine)) as client:
        relapses = Relapses("embedded", engine)
        for path in ("/health/live", "/v2/health/live"):
            assert (await client.get(path)).status_code == 200
        for _ in range(RELAPSES):
            relapses.ended()
        before = outcomes()
        told = await client.get("/health/live")
        assert (told.status_code, told.json()["status"]) == (503, "not live")
        assert told.json()["reasons"] == ["embedded: engines die again and again"]
        assert (await client.get("/v2/health/live")).status_code == 503
        assert {outcome for _, outcome in outcomes() - before} == {"not_ready"}
        relapses.forget()
        assert (await client.get("/health/live")).json() == {"status": "live", "reasons": [], "models": []}
