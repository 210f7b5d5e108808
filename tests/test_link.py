"""Both ends of the link over a real socket and real shared memory; only the device is made up."""

import asyncio
import dataclasses
import fcntl
import gc
import itertools
import math
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import CARD, FakeDevice, running_engine
from linking import DECODERS, ask, linked, painted, until
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded
from service.link import Link
from service.outputs import Wants
from service.wire import LENGTH, SEALS, Answer, Kind, ModelCard, Order, Outcome, State


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture(autouse=True)
async def nothing_unforeseen() -> AsyncIterator[None]:
    """Whatever a test does to them, both ends know what to make of it."""
    unforeseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
    yield
    assert unforeseen == []


def free(link: Link) -> int:
    """How many slots can be lent now."""
    assert link._session is not None
    return len(link._session._free)


def measured(gauge: str) -> float | None:
    """What a gauge of the link shows."""
    return REGISTRY.get_sample_value(gauge, {"model": CARD.model})


async def test_every_picture_gets_its_own_scores(device: FakeDevice, path: Path) -> None:
    numbers = [random.Random(1).randrange(256) for _ in range(300)]
    async with running_engine(device, path, limit=512), linked(path, 200) as one, linked(path, 200) as other:
        found = await asyncio.gather(*(ask([one, other][place % 2], number) for place, number in enumerate(numbers)))
    assert found == numbers
    assert sum(map(len, device.batches)) == len(numbers)


async def test_slots_are_all_free_again_after_many_random_cancellations(device: FakeDevice, path: Path) -> None:
    dice = random.Random(2)
    async with running_engine(device, path, limit=512), linked(path, 32) as link:
        for _ in range(20):
            asked = [asyncio.create_task(ask(link, number)) for number in range(16)]
            for task in dice.sample(asked, 8):
                asyncio.get_running_loop().call_later(dice.random() * 0.01, task.cancel)
            for number, result in enumerate(await asyncio.gather(*asked, return_exceptions=True)):
                assert result == number or isinstance(result, asyncio.CancelledError)
        await until(lambda: free(link) == 32)


async def test_cancelling_one_of_three_leaves_the_others_and_never_runs(device: FakeDevice, path: Path) -> None:
    device.gate.clear()
    async with running_engine(device, path) as engine, linked(path) as link:
        first = asyncio.create_task(ask(link, 0))
        await device.under_way()
        waiting = [asyncio.create_task(ask(link, number)) for number in (1, 2, 3)]
        await until(lambda: engine._queue.depth == 3)
        waiting[1].cancel()
        await until(lambda: engine._queue.depth == 2)
        device.gate.set()
        assert await asyncio.gather(*[first, waiting[0], waiting[2]]) == [0, 1, 3]
    assert device.batches == [[0], [1, 3]]


async def test_a_slot_that_a_decoder_still_writes_to_is_not_lent_again(device: FakeDevice, path: Path) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slow(pixels: NDArray[np.uint8], card: ModelCard) -> None:
        writing.set()
        go_on.wait(20)

    async with running_engine(device, path), linked(path, slots=1) as link:

        async def decode() -> None:
            with link.slot() as slot:
                await link.load(slot, slow)

        task = asyncio.create_task(decode())
        await asyncio.to_thread(writing.wait)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(Overloaded), link.slot():
            pass
        assert (measured("volo_slots_lent"), measured("volo_abandoned_decodes")) == (1, 1)
        go_on.set()
        await until(lambda: free(link))
        assert (measured("volo_slots_lent"), measured("volo_abandoned_decodes")) == (0, 0)
        assert await ask(link, 7) == 7


async def test_a_slot_on_the_device_is_not_lent_again_before_the_answer(device: FakeDevice, path: Path) -> None:
    device.gate.clear()
    async with running_engine(device, path), linked(path, slots=1) as link:
        assert (measured("volo_slots"), measured("volo_slots_lent")) == (1, 0)
        task = asyncio.create_task(ask(link, 1))
        await device.under_way()
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(Overloaded), link.slot():
            pass
        assert measured("volo_slots_lent") == 1
        device.gate.set()
        await until(lambda: free(link))
        assert measured("volo_slots_lent") == 0


async def test_pictures_under_way_when_the_engine_dies_go_to_the_next_one(device: FakeDevice, path: Path) -> None:
    device.gate.clear()
    async with linked(path, when_well=False) as link:
        async with running_engine(device, path) as engine:
            await until(lambda: link.ailments() == [])
            asked = [asyncio.create_task(ask(link, 0))]
            await device.under_way()
            asked += [asyncio.create_task(ask(link, number)) for number in (1, 2, 3)]
            await until(lambda: engine._queue.depth == 3)
            asked[0].cancel()  # on the device
            await asyncio.wait(asked[:1])
        await until(link.ailments)
        assert link.ailments() == ["the engine is gone and being restarted"]
        with pytest.raises(EngineUnavailable), link.slot():
            pass
        asked[1].cancel()  # while there is no engine
        await asyncio.wait(asked[:2])
        second = FakeDevice()
        async with running_engine(second, path):
            assert [await asked[2], await asked[3]] == [2, 3]
            assert sorted(itertools.chain.from_iterable(second.batches)) == [2, 3]
            assert await ask(link, 9) == 9
            await until(lambda: free(link) == 64)


async def test_who_leaves_just_when_the_answer_comes_and_the_engine_dies_leaves_in_peace(
    device: FakeDevice, path: Path
) -> None:
    device.gate.clear()
    async with running_engine(device, path), linked(path) as link:
        task = asyncio.create_task(ask(link, 1))
        await device.under_way()
        session = link._session
        assert session is not None
        (number,) = session._sent
        session.received(Answer(Outcome.OK, number).encode())  # all within one turn of the loop
        session.disconnect()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert free(link) == 64


async def test_another_model_gets_nothing_that_was_meant_for_the_last(device: FakeDevice, path: Path) -> None:
    device.gate.clear()
    other = dataclasses.replace(CARD, model="other", image_size=16)
    async with linked(path, slots=4, when_well=False) as link:
        slots = ExitStack()
        async with running_engine(device, path):
            await until(lambda: link.ailments() == [])
            loaded = slots.enter_context(link.slot())
            assert loaded.card == CARD
            await link.load(loaded, painted(1))
            sent = asyncio.create_task(ask(link, 2))
            await device.under_way()
        second = FakeDevice()
        async with running_engine(second, path, card=other):
            await until(lambda: link.card == other and link.ailments() == [])
            for attempt in (sent, link.classify(loaded, time.monotonic() + 30)):
                with pytest.raises(EngineUnavailable, match="replaced"):
                    await attempt
            slots.close()
            assert await asyncio.gather(*[ask(link, number) for number in range(4)]) == [0, 1, 2, 3]
            assert free(link) == 4
    assert sorted(itertools.chain.from_iterable(second.batches)) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_everyone_gets_what_is_theirs(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    asked: dict[asyncio.Task[int], int] = {}
    async with linked(path, 256, when_well=False) as one, linked(path, 256, when_well=False) as other:
        for engine in range(4):
            device = FakeDevice()
            device.poison, device.nan, device.room = {5}, {6}, 4
            async with running_engine(device, path, limit=512):
                await until(lambda: not (one.ailments() or other.ailments()))
                for number in dice.choices(range(32), k=60):
                    asked[asyncio.create_task(ask(dice.choice([one, other]), number))] = number
                for task in dice.sample(list(asked), 15):
                    asyncio.get_running_loop().call_later(dice.random() * 0.02, task.cancel)
                for _ in range(dice.randrange(1, 6)):
                    await device.under_way()  # and then it dies with the rest under way
                if engine == 3:
                    await asyncio.wait(asked)
            await until(lambda: one.ailments() and other.ailments())
        for task, number in asked.items():
            if task.cancelled():
                continue
            if number in (5, 6):
                assert isinstance(task.exception(), InferenceFailed)
            elif not isinstance(task.exception(), InferenceFailed) or "ended twice" not in str(task.exception()):
                assert task.result() == number
        assert free(one) == free(other) == 256


async def test_what_cannot_be_scored_fails_alone(device: FakeDevice, path: Path) -> None:
    device.poison, device.nan = {5}, {6}
    device.gate.clear()
    async with running_engine(device, path) as engine, linked(path) as link:
        first = asyncio.create_task(ask(link, 0))
        await device.under_way()
        asked = [asyncio.create_task(ask(link, number)) for number in range(1, 9)]
        await until(lambda: engine._queue.depth == 8)
        device.gate.set()
        results = await asyncio.gather(first, *asked, return_exceptions=True)
    failed = [number for number, result in enumerate(results) if isinstance(result, InferenceFailed)]
    assert failed == [5, 6]
    assert [result for result in results if isinstance(result, int)] == [0, 1, 2, 3, 4, 7, 8]


async def test_a_deadline_that_passes_in_the_queue_is_told(device: FakeDevice, path: Path) -> None:
    device.gate.clear()
    async with running_engine(device, path, cost_s=0.05) as engine, linked(path) as link:
        first = asyncio.create_task(ask(link, 0))
        await device.under_way()
        late = asyncio.create_task(ask(link, 1, patience_s=1.0))
        await until(lambda: engine._queue.depth == 1)
        await asyncio.sleep(1.0)  # until its deadline has passed
        device.gate.set()
        assert await first == 0
        with pytest.raises(DeadlineExceeded):
            await late


async def test_a_full_queue_and_a_hopeless_deadline_are_refused_at_once(device: FakeDevice, path: Path) -> None:
    device.gate.clear()
    async with running_engine(device, path, limit=2) as engine, linked(path) as link:
        first = asyncio.create_task(ask(link, 0))
        await device.under_way()
        waiting = [asyncio.create_task(ask(link, number)) for number in (1, 2)]
        await until(lambda: engine._queue.depth == 2)
        with pytest.raises(Overloaded) as refusal:
            await ask(link, 3)
        assert refusal.value.retry_after_s > 0
        device.gate.set()
        assert await asyncio.gather(first, *waiting) == [0, 1, 2]
        with pytest.raises(Overloaded):
            await ask(link, 4, patience_s=0.0001)


async def test_who_would_stand_behind_one_that_was_refused_is_refused_before_its_picture_is_decoded(
    device: FakeDevice, path: Path
) -> None:
    device.gate.clear()
    async with running_engine(device, path, cost_s=1.0) as engine, linked(path) as link:
        first = asyncio.create_task(ask(link, 0))
        await device.under_way()
        deadline_s = time.monotonic() + 1.5
        with link.slot() as slot:
            await link.load(slot, painted(1))
            with pytest.raises(Overloaded) as refused:
                await link.classify(slot, deadline_s)
        with pytest.raises(Overloaded) as at_the_door, link.slot(deadline_s + 0.1):
            pass
        with pytest.raises(Overloaded):  # nor is one whose turn comes only now
            slot.session.hope(deadline_s + 0.1)
        slot.session.hope(deadline_s - 0.1)
        assert at_the_door.value.reason == "deadline"
        assert at_the_door.value.retry_after_s == pytest.approx(refused.value.retry_after_s - 0.1, abs=1e-3)
        with link.slot(deadline_s - 0.1), link.slot(deadline_s + refused.value.retry_after_s + 0.01):
            pass  # the one would stand before it, the other has more patience
        assert engine._queue.depth == 0
        device.gate.set()
        assert await first == 0


async def test_a_worker_that_leaves_takes_only_its_own_pictures_along(device: FakeDevice, path: Path) -> None:
    device.gate.clear()
    async with running_engine(device, path) as engine, linked(path) as staying:
        async with linked(path) as leaving:
            gone = [asyncio.create_task(ask(leaving, 1))]
            await device.under_way()
            gone += [asyncio.create_task(ask(leaving, number)) for number in (2, 3)]
            kept = asyncio.create_task(ask(staying, 4))
            await until(lambda: engine._queue.depth == 3)
            leaving._session._channel.close()  # type: ignore[union-attr]
            await until(lambda: len(engine._workers) == 1)
            for task in gone:
                task.cancel()
        await until(lambda: engine._queue.depth == 1)
        device.gate.set()
        assert await kept == 4
    assert device.batches == [[1], [4]]


@pytest.mark.parametrize("rubbish", [b"", b"\0", LENGTH.pack(3), LENGTH.pack(0) + b"?" * 99])
async def test_a_stranger_is_turned_away_and_disturbs_nobody(device: FakeDevice, path: Path, rubbish: bytes) -> None:
    async with running_engine(device, path), linked(path) as link:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(rubbish)
        if not rubbish:
            writer.close()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        assert await ask(link, 3) == 3


async def test_a_stranger_that_says_nothing_is_hung_up_on(
    device: FakeDevice, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_engine(device, path), linked(path) as link:
        monkeypatch.setattr("service.engine.HANDSHAKE_S", 0.05)  # nobody wants to wait for as long as that
        reader, writer = await asyncio.open_unix_connection(path)
        card = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert ModelCard.decode(card[LENGTH.size :]) == CARD
        assert await ask(link, 3) == 3


async def test_a_slab_smaller_than_its_slots_is_turned_away(device: FakeDevice, path: Path) -> None:
    async with running_engine(device, path), linked(path) as link:
        with handing_over(path, slots=1000, memory_bytes=4096) as stranger:
            await hung_up(stranger)
        assert await ask(link, 3) == 3


@contextmanager
def handing_over(path: Path, slots: int, memory_bytes: int) -> Iterator[socket.socket]:
    """A connection to the engine that has handed memory over for slots, as a worker does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect(str(path))
        memory = os.memfd_create("stranger", os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, memory_bytes)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        socket.send_fds(sock, [LENGTH.pack(slots)], [memory])
        os.close(memory)
        yield sock


async def hung_up(sock: socket.socket) -> None:
    """Return when the other end has closed the connection."""
    async with asyncio.timeout(20):
        with suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(sock, 65536):
                pass


SOON_S = time.monotonic() + 600


@pytest.mark.parametrize(
    "orders",
    [
        b"?" * Order.FORMAT.size,
        Order(Kind.SUBMIT, 2, SOON_S, SOON_S).encode(),
        Order(Kind.CANCEL, 2**32 - 1).encode(),
        Order(Kind.SUBMIT, 0, -1e300, SOON_S).encode(),
        Order(Kind.SUBMIT, 0, math.nan, SOON_S).encode(),
        Order(Kind.SUBMIT, 0, SOON_S, -1e300).encode(),
        Order(Kind.SUBMIT, 0, SOON_S, SOON_S).encode() * 2,
    ],
    ids=["unknown kind", "no such slot", "by far no such slot", "long ago", "no time", "for long ago", "twice"],
)
async def test_orders_that_make_no_sense_cost_their_sender_the_connection_and_nobody_else(
    device: FakeDevice, path: Path, orders: bytes
) -> None:
    device.gate.clear()
    async with running_engine(device, path) as engine, linked(path) as link:
        asked = asyncio.create_task(ask(link, 3))
        await device.under_way()
        with handing_over(path, slots=2, memory_bytes=1 << 20) as stranger:
            await asyncio.get_running_loop().sock_sendall(stranger, orders)
            await hung_up(stranger)
        await until(lambda: len(engine._workers) == 1 and engine._queue.depth == 0)
        device.gate.set()
        assert await asked == 3
        assert await ask(link, 4) == 4


async def test_an_engine_that_makes_no_sense_is_left_for_the_next(device: FakeDevice, path: Path) -> None:
    strange: list[bytes] = []

    async def rave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = CARD.encode()
        writer.write(LENGTH.pack(len(body)) + body + Answer(Outcome.OK, 3).encode())
        strange.append(await reader.read())
        writer.close()

    async with linked(path, when_well=False) as link:
        async with await asyncio.start_unix_server(rave, path):
            await until(lambda: strange)
        async with running_engine(device, path):
            await until(lambda: link.ailments() == [])
            assert await ask(link, 5) == 5


async def test_no_descriptor_is_left_behind_by_workers_that_came_and_went(device: FakeDevice, path: Path) -> None:
    async with running_engine(device, path) as engine:
        for round_ in range(50):
            async with linked(path, 2) as link:
                assert await ask(link, round_) == round_
            del link
            await until(lambda: not engine._workers)
            if round_ == 1:
                gc.collect()
                before = len(os.listdir("/proc/self/fd"))
        gc.collect()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_before_the_first_engine_a_link_says_so(path: Path) -> None:
    link = Link(1, DECODERS)
    assert link.ailments() == ["the engine is starting"]
    with pytest.raises(EngineUnavailable), link.slot():
        pass


async def test_silence_and_a_stuck_run_are_ailments(
    device: FakeDevice, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.gate.clear()
    async with running_engine(device, path) as engine, linked(path) as link:
        asked = asyncio.create_task(ask(link, 1))
        await device.under_way()
        monkeypatch.setattr("service.engine.AILING_S", 0.0)  # nobody wants to wait for as long as that
        await until(lambda: engine._pulse().state is State.AILING)
        await until(lambda: "the device is not well" in "".join(link.ailments()))
        monkeypatch.setattr("service.link.SILENCE_S", -1.0)
        assert "silent" in link.ailments()[0]
        device.gate.set()
        assert await asked == 1


async def test_a_retiring_engine_answers_what_it_has_and_its_successor_gets_the_rest(
    device: FakeDevice, path: Path, tmp_path: Path
) -> None:
    device.gate.clear()
    second, beside = FakeDevice(), tmp_path / "beside.sock"
    async with running_engine(device, path) as engine, linked(path) as link:
        before = [asyncio.create_task(ask(link, 1))]
        await device.under_way()
        before += [asyncio.create_task(ask(link, number)) for number in (2, 3)]
        await until(lambda: engine._queue.depth == 2)
        async with running_engine(second, beside):
            beside.replace(path)
            engine.retire()
            old = link._session
            await until(lambda: link._session is not old)
            assert await asyncio.gather(*(ask(link, number) for number in (4, 5))) == [4, 5]
            assert not any(task.done() for task in before)
            device.gate.set()
            assert await asyncio.gather(*before) == [1, 2, 3]
            await until(engine._deserted.is_set)
            assert sorted(itertools.chain.from_iterable(second.batches)) == [4, 5]
            assert link.ailments() == []


async def test_a_slot_lent_before_the_change_is_answered_by_the_engine_it_was_lent_for(
    device: FakeDevice, path: Path, tmp_path: Path
) -> None:
    second, beside = FakeDevice(), tmp_path / "beside.sock"
    larger = dataclasses.replace(CARD, image_size=16)
    async with running_engine(device, path) as engine, linked(path) as link:
        with link.slot() as slot:
            async with running_engine(second, beside, card=larger):
                beside.replace(path)
                engine.retire()
                await until(lambda: link.card == larger)
                await link.load(slot, painted(7))
                assert slot.card == CARD
                await link.classify(slot, time.monotonic() + 30)
                assert slot.outputs.logits.argmax() == 7
                assert device.batches == [[7]]
                assert await ask(link, 8) == 8


async def test_pictures_that_a_retiring_engine_takes_along_when_it_dies_are_told(
    device: FakeDevice, path: Path, tmp_path: Path
) -> None:
    device.gate.clear()
    second, beside = FakeDevice(), tmp_path / "beside.sock"
    async with linked(path, when_well=False) as link:
        async with running_engine(device, path) as engine:
            await until(lambda: link.ailments() == [])
            lost = asyncio.create_task(ask(link, 1))
            await device.under_way()
            old = link._session
            successor = asyncio.create_task(until(lambda: link._session is not old))
            stack = await AsyncExitStack().__aenter__()
            await stack.enter_async_context(running_engine(second, beside))
            beside.replace(path)
            engine.retire()
            await successor
        with pytest.raises(EngineUnavailable):
            await lost
        assert await ask(link, 2) == 2
        await stack.aclose()


async def test_a_retired_engines_slab_goes_with_it_and_waits_for_no_collection(
    device: FakeDevice, path: Path, tmp_path: Path
) -> None:
    beside = tmp_path / "beside.sock"
    async with running_engine(device, path) as engine, linked(path) as link:
        await asyncio.gather(*(ask(link, number) for number in range(8)))
        slab = weakref.ref(link._session.slab)  # type: ignore[union-attr]
        gc.disable()
        try:
            async with running_engine(FakeDevice(), beside):
                beside.replace(path)
                engine.retire()
                await until(engine._deserted.is_set)
                await until(lambda: slab() is None)
        finally:
            gc.enable()


async def test_an_engine_retires_at_once_when_nobody_is_there(device: FakeDevice, path: Path) -> None:
    async with running_engine(device, path) as engine:
        await until(lambda: hasattr(engine, "_accepting"))
        engine.retire()
        assert engine._deserted.is_set()


async def test_the_background_is_scored_too_and_features_and_evidence_come_if_wanted(
    device: FakeDevice, path: Path
) -> None:
    async with running_engine(device, path), linked(path) as link:
        with link.slot() as slot:
            await link.load(slot, painted(9))
            wants = Wants.FEATURES | Wants.EVIDENCE
            await link.classify(slot, time.monotonic() + 30, wants, background=True)
            outputs = slot.outputs
            assert outputs.features is not None
            assert outputs.evidence is not None
            assert outputs.features.tolist() == [9, 9, 9]
            assert outputs.evidence.labels[0] == 9
            assert outputs.evidence.maps[0].argmax() == 9
    assert device.wants == [wants]


async def test_a_picture_that_engines_die_of_is_refused_after_the_second_and_its_companions_are_answered(
    path: Path,
) -> None:
    asked: list[asyncio.Task[int]] = []
    async with linked(path, when_well=False) as link:
        for engine in range(3):
            device = FakeDevice()
            device.deadly = {3}
            async with running_engine(device, path) as running:
                if engine == 0:
                    await until(lambda: link.ailments() == [])
                    device.gate.clear()
                    asked.append(asyncio.create_task(ask(link, 0)))
                    await device.under_way()
                    asked += [asyncio.create_task(ask(link, number)) for number in range(1, 6)]
                    await until(lambda running=running: running._queue.depth == 5)  # type: ignore[misc]
                    device.gate.set()
                if engine < 2:  # the second lives for a millisecond or two: to look whether it is well may miss that
                    await until(lambda device=device: any(3 in batch for batch in device.batches))  # type: ignore[misc]
                    await until(lambda: link.ailments() != [])
                else:
                    results = await asyncio.gather(*asked, return_exceptions=True)
            if engine == 1:
                assert [3] in device.batches
                assert all(len(batch) == 1 for batch in device.batches)  # suspects stand alone
        assert isinstance(results.pop(3), InferenceFailed)
        assert results == [0, 1, 2, 4, 5]
        assert free(link) == 64


async def test_who_cannot_wait_for_the_next_engine_is_told_before_the_deadline(device: FakeDevice, path: Path) -> None:
    async with linked(path, when_well=False) as link:
        async with running_engine(device, path):
            await until(lambda: link.ailments() == [])
            device.gate.clear()
            asked = asyncio.create_task(ask(link, 1, patience_s=0.5))
            await device.under_way()
        with pytest.raises(EngineUnavailable, match="still being restarted"):
            await asked
        assert free(link) == 64


async def test_a_picture_that_is_ready_when_the_engine_has_died_waits_for_the_next(path: Path) -> None:
    async with linked(path, when_well=False) as link:
        async with running_engine(FakeDevice(), path):
            await until(lambda: link.ailments() == [])
            borrowed = ExitStack()
            slot = borrowed.enter_context(link.slot())
        await until(lambda: link.ailments() != [])
        await link.load(slot, painted(7))
        late = asyncio.create_task(link.classify(slot, time.monotonic() + 0.1))
        with pytest.raises(EngineUnavailable, match="still being restarted"):
            await late
        answered = asyncio.create_task(link.classify(slot, time.monotonic() + 30))
        async with running_engine(FakeDevice(), path):
            assert (await answered).outcome is Outcome.OK
        borrowed.close()
