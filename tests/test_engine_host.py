"""An engine's place is taken by the next one, unless the service ends meanwhile."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.engine_host import EngineHost, EngineHosts
from service.process import Refused
from service.settings import Settings


class FakeChild:
    """In place of a process, which could not be held between two moments: it is warm, and has ended, when told to."""

    def __init__(self, role: str, orders: dict[str, Any], inherit: object) -> None:
        self.orders = orders
        self.warm, self.ended = asyncio.Event(), asyncio.Event()
        self.refusal = ""
        self.asked: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        await self.warm.wait()
        if self.refusal:
            raise Refused(self.refusal)

    async def run(self, on_restart: object, on_ready: Callable[[str], None]) -> None:
        self.tell_ready = on_ready
        await self.ended.wait()

    async def stop(self, how: signal.Signals, patience_s: float) -> None:
        self.asked.set_result(how)
        await self.ended.wait()


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[FakeChild]:
    made: list[FakeChild] = []

    def make(role: str, orders: dict[str, Any], inherit: object, silence_s: float) -> FakeChild:
        made.append(FakeChild(role, orders, inherit))
        return made[-1]

    monkeypatch.setattr("service.engine_host.Child", make)
    return made


@pytest.fixture
async def host(children: list[FakeChild], tmp_path: Path) -> EngineHost:
    return EngineHost("pets", "embedded", Settings(), tmp_path / "engine.sock")


async def turn() -> None:
    """Let everybody go as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_next_engine_takes_over_when_it_is_warm(host: EngineHost, children: list[FakeChild]) -> None:
    running = asyncio.create_task(host.run())
    reloading = asyncio.create_task(host.reload())
    await turn()
    before, after = children
    assert not before.asked.done()
    after.warm.set()
    assert await before.asked is signal.SIGTERM
    before.ended.set()
    await reloading
    assert not running.done()
    after.ended.set()
    await running
    host.close()


async def test_where_a_gpu_was_taken_of_itself_no_later_engine_does_without(
    host: EngineHost, children: list[FakeChild]
) -> None:
    running = asyncio.create_task(host.run())
    await turn()
    assert children[0].orders["settings"]["device"] == "auto"
    children[0].tell_ready("cuda")
    reloading = asyncio.create_task(host.reload())
    await turn()
    assert [child.orders["settings"]["device"] for child in children] == ["cuda", "cuda"]
    for task in (reloading, running):
        task.cancel()
    for child in children:
        child.ended.set()
    await asyncio.wait([reloading, running])
    host.close()


async def test_one_that_is_warm_when_the_service_is_ending_takes_no_place(
    host: EngineHost, children: list[FakeChild]
) -> None:
    running = asyncio.create_task(host.run())
    reloading = asyncio.create_task(host.reload())
    await turn()
    stopping = asyncio.create_task(host.stop())
    before, after = children
    assert await before.asked is signal.SIGTERM
    after.warm.set()
    assert await asyncio.wait_for(after.asked, 20) is signal.SIGKILL
    for child in children:
        child.ended.set()
    with pytest.raises(Refused, match="ending"):
        await reloading
    await asyncio.wait_for(asyncio.gather(stopping, running), 20)
    host.close()


async def test_of_several_models_the_one_that_cannot_be_loaded_is_named(
    host: EngineHost, children: list[FakeChild], tmp_path: Path
) -> None:
    hosts = EngineHosts(tmp_path / "control.sock")
    hosts["pets"], hosts["cats"] = host, EngineHost("cats", "embedded", Settings(), tmp_path / "other.sock")
    running = asyncio.create_task(hosts.run())
    reloading = asyncio.create_task(hosts.reload())
    await turn()
    pets, cats, new_pets = children
    pets.ended.set()
    new_pets.warm.set()
    await turn()
    new_cats = children[-1]
    new_cats.refusal = "the file is torn"
    new_cats.ended.set()
    new_cats.warm.set()
    with pytest.raises(Refused, match=r"^cats: the file is torn$"):
        await reloading
    assert not cats.asked.done()
    for child in (new_pets, cats):
        child.ended.set()
    await running
    for each in hosts.values():
        each.close()
