"""What the engine makes of orders: which runs, and what becomes of those that fail."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from fakes import CARD, FakeDevice, listening, running_engine
from linking import ask, ask_fully, linked, until
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from running import ROOT, environment
from structlog.testing import capture_logs

from service.batching import Queue
from service.costs import Costs
from service.device import DeviceFault, OutOfMemory
from service.engine import PROBE_S, Engine
from service.engine_process import main
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded
from service.link import Link
from service.multiprocess import NoRoom
from service.outputs import Outputs, Wants
from service.process import REFUSED
from service.settings import Settings
from service.wire import Kind, Order, State
from service.workers import Place


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


async def behind_one(
    device: FakeDevice, path: Path, numbers: list[int], patience_s: dict[int, float] | None = None
) -> list[Any]:
    """What comes of pictures that all wait while the device is busy with picture 0."""
    async with running_engine(device, path) as engine, linked(path) as link:
        return await together(device, engine, link, numbers, patience_s or {})


async def together(
    device: FakeDevice, engine: Engine, link: Link, numbers: list[int], patience_s: dict[int, float]
) -> list[Any]:
    device.gate.clear()
    asked = [asyncio.create_task(ask(link, 0))]
    await device.under_way()
    for waiting, number in enumerate(numbers, 1):
        asked.append(asyncio.create_task(ask(link, number, patience_s.get(number, 30.0))))
        await until(lambda waiting=waiting: engine._queue.depth == waiting)  # type: ignore[misc]
    device.gate.set()
    return (await asyncio.gather(*asked, return_exceptions=True))[1:]


async def test_an_idle_device_starts_a_lone_picture_at_once(path: Path) -> None:
    device = FakeDevice()
    async with running_engine(device, path, cost_s=5.0), linked(path) as link:
        assert await ask(link, 1) == 1
    assert (device.batches, device.sizes) == ([[1]], [1])


async def test_no_timer_stands_between_an_order_and_its_run(path: Path) -> None:
    device = FakeDevice()
    device.gate.clear()
    async with running_engine(device, path) as engine, linked(path):
        (worker,) = engine._workers
        soon_s = time.monotonic() + 30
        engine._take(Place(worker, 0), Order(Kind.SUBMIT, 0, soon_s, soon_s))
        await asyncio.sleep(0)
        assert len(engine._started) == 1


async def test_what_came_while_the_device_was_busy_runs_together_in_one_padded_run(path: Path) -> None:
    device, padded = FakeDevice(), sample("volo_padded_places_total")
    assert await behind_one(device, path, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert (device.batches, device.sizes) == ([[0], [1, 2, 3, 4, 5]], [1, 8])
    assert sample("volo_padded_places_total") == padded + 3


async def test_lanes_run_beside_each_other_and_only_the_first_run_was_alone(path: Path) -> None:
    device = FakeDevice()
    device.gate.clear()
    async with running_engine(device, path, lanes=2), linked(path) as link:
        asked = []
        for number in (1, 2):
            asked.append(asyncio.create_task(ask(link, number)))
            await device.under_way()
        device.gate.set()
        assert await asyncio.gather(*asked) == [1, 2]
    assert (device.batches, device.alone) == ([[1], [2]], [True, False])


class TwoGates(FakeDevice):
    """A device whose runs of two end only when the second gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.second_gate = threading.Event()

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, alone: bool, wants: Wants) -> Outputs:
        outputs = super().run(pictures, padded_size, alone, wants)
        assert padded_size == 1 or self.second_gate.wait(60)
        return outputs


class Choking(TwoGates):
    """A device on which runs of several raise, once the second gate is open."""

    def run(self, pictures: Sequence[NDArray[np.uint8]], padded_size: int, alone: bool, wants: Wants) -> Outputs:
        outputs = super().run(pictures, padded_size, alone, wants)
        if padded_size > 1:
            raise RuntimeError("told to choke on several")
        return outputs


async def test_what_nobody_waits_for_any_more_is_not_run_again_after_a_run_that_raised(path: Path) -> None:
    device = Choking()
    device.gate.clear()
    async with running_engine(device, path) as engine, linked(path) as link:
        asked = [asyncio.create_task(ask(link, 0))]
        await device.under_way()
        for waiting, patience_s in enumerate((30.0, 0.2, 30.0, 30.0), 1):
            asked.append(asyncio.create_task(ask(link, waiting, patience_s)))
            await until(lambda waiting=waiting: engine._queue.depth == waiting)  # type: ignore[misc]
        device.gate.set()
        await device.under_way()
        asked[3].cancel()
        await asyncio.sleep(0.25)  # for the deadline of the second to come
        device.second_gate.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert engine._scorer.leaving == set()
    assert (results[1], results[4]) == (1, 4)
    assert isinstance(results[2], DeadlineExceeded)
    assert isinstance(results[3], asyncio.CancelledError)
    assert sorted(batch[0] for batch in device.batches if len(batch) == 1) == [0, 1, 4]


async def test_a_full_run_is_handed_over_while_another_is_under_way_and_counts_from_its_end(path: Path) -> None:
    device = TwoGates()
    device.gate.clear()
    held_s = 0.05
    async with running_engine(device, path, ladder=(1, 2), ahead=1), linked(path) as link:
        first = asyncio.create_task(ask(link, 1))
        await device.under_way()
        second = [asyncio.create_task(ask_fully(link, number)) for number in (2, 3)]
        await device.under_way()
        assert sorted(device.batches[1]) == [2, 3]
        await asyncio.sleep(held_s)
        device.gate.set()
        assert await first == 1
        device.second_gate.set()
        for number, answer in await asyncio.gather(*second):
            assert number in (2, 3)
            assert answer.queue_s > held_s


async def test_the_earliest_deadline_runs_first(path: Path) -> None:
    device = FakeDevice()
    await behind_one(device, path, list(range(1, 11)), patience_s={10: 5.0, 9: 6.0})
    assert device.batches[1][:2] == [10, 9]


async def test_a_run_that_raises_is_done_again_by_halves_until_the_culprit_stands_alone(path: Path) -> None:
    device = FakeDevice()
    device.poison = {3}
    results = await behind_one(device, path, [1, 2, 3, 4])
    assert isinstance(results.pop(2), InferenceFailed)
    assert results == [1, 2, 4]
    assert device.batches[1:] == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


async def test_a_wrong_count_of_scores_is_a_failed_run(path: Path) -> None:
    device = FakeDevice()
    device.rows_missing = 1
    assert all(isinstance(result, InferenceFailed) for result in await behind_one(device, path, [1, 2]))


async def test_out_of_memory_halves_the_run_and_is_remembered(path: Path) -> None:
    device, numbers = FakeDevice(), list(range(1, 9))
    device.room = 2
    async with running_engine(device, path) as engine, linked(path) as link:
        assert sample("volo_batch_limit") == 8
        assert await together(device, engine, link, numbers, {}) == numbers
        assert device.sizes == [1, 8, 4, 2, 2, 2, 2]
        assert sample("volo_batch_limit") == 2
        await drained(device)
        assert await together(device, engine, link, numbers, {}) == numbers
        assert device.sizes[7:] == [1, 2, 2, 2, 2]
    assert all(len(batch) <= size for batch, size in zip(device.batches, device.sizes, strict=True))


async def drained(device: FakeDevice) -> None:
    """Forget the runs that nobody has waited for."""
    while device.entered.acquire(blocking=False):
        pass


@pytest.mark.parametrize(("trouble", "value"), [("dead", True), ("room", 0)], ids=["fault", "no memory for one"])
async def test_a_device_of_no_use_ends_the_engine(path: Path, trouble: str, value: int) -> None:
    device = FakeDevice()
    setattr(device, trouble, value)
    async with serving(device, path) as engine_task, linked(path) as link:
        asked = asyncio.create_task(ask(link, 1))
        await ended_by_fault(engine_task)
        assert not asked.done()  # the next engine will see to it
        asked.cancel()
        await asyncio.wait([asked])


async def test_a_probe_that_fails_ends_the_engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.PROBE_S", 0.0)  # nobody wants to wait for as long as these
    monkeypatch.setattr("service.engine.PULSE_S", 0.001)
    device = FakeDevice()
    device.dead = True
    async with serving(device, path) as engine_task:
        await ended_by_fault(engine_task)


@pytest.mark.parametrize("idle", [False, True], ids=["a run", "a probe"])
async def test_one_that_does_not_come_back_ends_the_engine(
    path: Path, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    monkeypatch.setattr("service.engine.PULSE_S", 0.001)
    monkeypatch.setattr("service.engine.STUCK_S", 0.05)
    if idle:
        monkeypatch.setattr("service.engine.PROBE_S", 0.0)
    device = FakeDevice()
    device.gate.clear()
    async with serving(device, path) as engine_task, linked(path, when_well=False) as link:
        asked = None
        if not idle:
            await until(lambda: link.card)
            asked = asyncio.create_task(ask(link, 1))
        with pytest.raises(ExceptionGroup) as ended:
            await asyncio.wait_for(engine_task, 20)
        assert ended.group_contains(DeviceFault, match="has not come back")
        device.gate.set()
        if asked:
            assert not asked.done()  # the next engine will see to it
            asked.cancel()
            await asyncio.wait([asked])


@asynccontextmanager
async def serving(device: FakeDevice, path: Path) -> AsyncIterator[asyncio.Task[None]]:
    """An engine that is expected to end by itself."""
    with listening(path) as listener:
        task = asyncio.create_task(Engine(device, CARD, Queue(8, Costs({1: 0.001}))).serve(listener))
        yield task


async def ended_by_fault(task: asyncio.Task[None]) -> None:
    with pytest.raises(ExceptionGroup) as ended:
        await asyncio.wait_for(task, PROBE_S / 2)
    assert ended.group_contains(DeviceFault)


async def test_a_device_that_has_long_done_nothing_is_probed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.PROBE_S", 0.0)  # nobody wants to wait for as long as these
    monkeypatch.setattr("service.engine.PULSE_S", 0.001)
    device = FakeDevice()
    async with running_engine(device, path) as engine:
        await until(lambda: device.probes >= 2)
        assert engine._pulse().state is State.WELL


REFUSALS = [
    ({"model": "volo_d9"}, "'volo_d9' is neither a file nor a model"),
    ({"device": "cuda:7"}, "The device cuda:7 was asked for, but torch"),
    ({"labels": "nowhere.txt"}, "nowhere.txt"),
    ({"weights_sha256": "0" * 64}, "not the pinned 000"),
]


@pytest.mark.parametrize(("settings", "complaint"), REFUSALS)
def test_what_cannot_work_as_it_is_set_up_is_a_refusal_that_says_why(settings: dict[str, str], complaint: str) -> None:
    with capture_logs() as log, pytest.raises(SystemExit) as end:
        main({"name": "a model", "settings": settings, "listener": -1})
    assert end.value.code == REFUSED
    assert [line["event"] for line in log] == ["cannot start"]
    assert complaint in log[0]["reason"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(DeviceFault("unspecified launch failure"), REFUSED), (OutOfMemory("of 2 GB"), 1), (NoRoom("in /tmp"), 1)],
)
def test_a_device_that_faults_at_the_start_is_a_refusal_and_room_may_still_come(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(settings: Settings) -> NoReturn:
        raise error

    monkeypatch.setattr("service.engine_process.load_classifier", fail)
    with capture_logs() as log, pytest.raises(SystemExit) as end:
        main({"name": "a model", "settings": {}, "listener": -1})
    assert end.value.code == status
    assert log[0]["reason"] == str(error)


def test_an_engine_process_that_refuses_says_so_in_one_line_and_its_exit_status() -> None:
    settings, complaint = REFUSALS[0]
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "_engine"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin as lifeline, process.stderr as log:
        lifeline.write(
            json.dumps({"settings": {**settings, "log_format": "json"}, "name": "a model", "listener": -1}) + "\n"
        )
        lifeline.flush()
        assert process.wait(60) == REFUSED
        (line,) = log.read().splitlines()
    assert complaint in json.loads(line)["reason"]


async def test_what_comes_while_the_engine_ends_is_left_to_the_next_one(path: Path) -> None:
    device = FakeDevice()
    async with running_engine(device, path) as engine, linked(path):
        (worker,) = engine._workers
        soon_s = time.monotonic() + 30
        engine._tasks._abort()  # type: ignore[attr-defined]  # as a failed task of the group has it do
        engine._take(Place(worker, 0), Order(Kind.SUBMIT, 0, soon_s, soon_s))
        engine._pump()
    assert device.batches == []


def sample(name: str, **labels: str) -> float:
    """A metric of this process's, of the fake model."""
    return REGISTRY.get_sample_value(name, {"model": "fake", **labels}) or 0.0


async def test_a_picture_that_is_let_in_and_not_computed_is_counted_with_the_reason(path: Path) -> None:
    def dropped() -> list[float]:
        return [sample("volo_dropped_pictures_total", reason=reason) for reason in ("cancelled", "expired")]

    device, before = FakeDevice(), dropped()
    async with running_engine(device, path) as engine, linked(path) as link:
        device.gate.clear()
        first = asyncio.create_task(ask(link, 0))
        await device.under_way()
        leaving = asyncio.create_task(ask(link, 1))
        late = asyncio.create_task(ask(link, 2, patience_s=0.05))
        await until(lambda: engine._queue.depth == 2)
        leaving.cancel()
        await until(lambda: engine._queue.depth == 1)
        await asyncio.sleep(0.06)  # for the deadline to come
        device.gate.set()
        await asyncio.gather(first, leaving, late, return_exceptions=True)
    assert (dropped()[0] - before[0], dropped()[1] - before[1]) == (1, 1)


async def test_the_device_is_busy_as_long_as_its_runs_took_and_the_gauges_tell_what_waits(path: Path) -> None:
    device = FakeDevice()
    async with running_engine(device, path, limit=17, cost_s=1.0) as engine, linked(path) as link:
        before_s, started_s = sample("volo_device_busy_seconds_total", device="cpu"), time.monotonic()
        device.gate.clear()
        asked = [asyncio.create_task(ask(link, number)) for number in range(2)]
        await device.under_way()
        await until(lambda: sum(len(batch.jobs) for batch in engine._started) + engine._queue.depth == 2)
        assert sample("volo_queue_limit") == 17
        assert sample("volo_pictures_in_run") + sample("volo_queue_depth") == 2
        assert sample("volo_predicted_wait_seconds") > 0
        assert sample("volo_device_memory_used_bytes", device="cpu") == 1000
        assert sample("volo_device_memory_total_bytes", device="cpu") == 4000
        device.gate.set()
        await asyncio.gather(*asked)
        busy_s = sample("volo_device_busy_seconds_total", device="cpu") - before_s
        assert 0 < busy_s <= time.monotonic() - started_s
        assert (
            sample("volo_pictures_in_run") == sample("volo_queue_depth") == sample("volo_predicted_wait_seconds") == 0
        )


async def test_a_picture_refused_at_the_door_says_why(path: Path) -> None:
    device = FakeDevice()
    async with running_engine(device, path, limit=1, cost_s=1.0) as engine, linked(path, slots=3) as link:
        device.gate.clear()
        first = asyncio.create_task(ask(link, 0))
        await device.under_way()
        with pytest.raises(Overloaded, match=r"in the 0\.5 s that are left") as hopeless:
            await ask(link, 1, patience_s=0.5)
        second = asyncio.create_task(ask(link, 2))
        await until(lambda: engine._queue.depth == 1)
        with pytest.raises(Overloaded) as full:
            await ask(link, 3)
        with link.slot(), pytest.raises(Overloaded) as crowded, link.slot():
            pass
        device.gate.set()
        await asyncio.gather(first, second)
    assert [error.value.reason for error in (hopeless, full, crowded)] == ["deadline", "queue_full", "no_slot"]
