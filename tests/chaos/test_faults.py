"""Engines and workers that die, hang and fail under load: nobody is lost, and nobody gets what is another's."""

import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from faulty_device import DIES, FILLS, HANGS, NAN, RAISES, STICKS
from loading import CALLERS, PICTURES, Load, ask, painted
from running import ROOT, Service, serving, until

ENGINE = "volo: engine embedded cpu"
KILLS = 10
NOTICED_S = 20.0
"""After so long, at the most, an engine that is stopped or whose run does not come back has been ended."""
REFUSED_S = 5.0
"""So long a refusal may take, on a machine that does other things too."""
TIMEOUT_S = 30.0
"""Long enough to outlast an engine's death and its successor's start."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    injected = os.pathsep.join([str(ROOT / "tests/chaos"), str(ROOT)])
    settings = {"VOLO_WORKERS": "2", "VOLO_MAX_BATCH": "8", "VOLO_TIMEOUT_S": str(TIMEOUT_S)}
    with serving(tmp_path, **settings, PYTHONPATH=injected) as service:
        until(service.is_ready)
        yield service


def replaced(service: Service, pid: int) -> bool:
    return service.children.get(ENGINE, pid) != pid and service.is_ready()


def at_s(line: dict[str, Any]) -> float:
    """When a line of the log was written, of the monotonic clock."""
    return datetime.fromisoformat(line["timestamp"]).timestamp() - time.time() + time.monotonic()


def absences(service: Service) -> list[tuple[float, float]]:
    """From when to when a worker had no engine."""
    spans = []
    for worker in ("worker 0", "worker 1"):
        found = [at_s(line) for line in service.said("connected to the engine") if line["process"] == worker]
        for lost in (at_s(line) for line in service.said("lost the engine") if line["process"] == worker):
            spans.append((lost, min((each for each in found if each > lost), default=math.inf)))
    return spans


def loaded_s(service: Service) -> float:
    """How long the newest engine's load and warm-up took."""
    return float(service.said("model ready")[-1]["in_s"])


def start_s(service: Service) -> float:
    """How long the first engine took to be there, beside load and warm-up: its process, and what that imports."""
    (starting,), connected = service.said("starting"), service.said("connected to the engine")
    return at_s(connected[0]) - at_s(starting) - float(service.said("model ready")[0]["in_s"])


def nobody_is_lost(load: Load, *allowed: int | None) -> None:
    """Everybody was told something in time, and nothing that was not so; whoever was refused asked while there was no
    engine, and whoever asked before waited for the next one. The service has counted as many."""
    assert set(load.statuses()) <= {200, 503, *allowed}, load.statuses()
    assert load.wrong() == []
    without = absences(load.service)
    for told in load.told:
        assert told.took_s < TIMEOUT_S
        if told.answer and told.answer.status_code == 503:
            assert told.answer.json()["code"] == "engine_unavailable"
            assert int(told.answer.headers["retry-after"]) >= 1
            assert any(lost < told.at_s and told.at_s - told.took_s < back for lost, back in without)
            assert not REFUSED_S < told.took_s < TIMEOUT_S - 1  # refused at once, or it waited for as long as it could
    until(lambda: load.service.counted("volo_requests_in_flight") == 1)  # this one
    counted = load.service.counted("volo_requests_total", endpoint="/predict", outcome="ok")
    assert abs(counted - load.answered_before - len(load.good())) <= load.statuses().get(None, 0)


def test_an_engine_that_is_killed_again_and_again_loses_nobody(service: Service) -> None:
    load = Load(service)
    away_s, beside_load_s = [], []
    with load.under_way():
        for _ in range(KILLS):
            at_s = time.monotonic()
            # killed twice before it has come to an end with what it was sent again, a picture would look guilty
            until(lambda at_s=at_s: load.answered_since(at_s) > 4 * CALLERS)  # type: ignore[misc]
            killed, at_s = service.children[ENGINE], time.monotonic()
            os.kill(killed, signal.SIGKILL)
            until(lambda killed=killed: replaced(service, killed))  # type: ignore[misc]
            away_s.append(time.monotonic() - at_s)
            beside_load_s.append(away_s[-1] - loaded_s(service))
    nobody_is_lost(load)
    assert service.counted("volo_engine_restarts_total") == KILLS
    sent_again = service.counted("volo_replayed_pictures_total")
    print(f"{load.statuses()}, ready after {sorted(away_s)}, beside load and warm-up {sorted(beside_load_s)},")
    print(f"at the first start {start_s(service)}; sent again: {sent_again}")
    assert max(beside_load_s) < start_s(service) + 3
    assert sent_again >= KILLS


@pytest.mark.parametrize("colour", [DIES, HANGS], ids=["dies", "hangs"])
def test_a_picture_that_ends_engines_is_refused_and_its_companions_are_answered(
    service: Service, colour: tuple[int, ...]
) -> None:
    load = Load(service)
    with load.under_way():
        until(lambda: len(load.told) > CALLERS)
        asked_s = time.monotonic()
        refused = ask(service, painted(colour))
        at_s = time.monotonic()
        until(lambda: load.answered_since(at_s) > CALLERS)
    assert (refused.status_code, refused.json()["code"]) == (500, "inference_failed")
    nobody_is_lost(load)
    assert service.counted("volo_engine_restarts_total") == 2
    assert service.get("/health/live").status_code == 200
    assert at_s - asked_s < 2 * (
        NOTICED_S + start_s(service) + max(line["in_s"] for line in service.said("model ready"))
    )
    assert service.counted("volo_replayed_pictures_total") > 0
    print(load.statuses(), at_s - asked_s, service.counted("volo_replayed_pictures_total"))


def test_an_engine_that_is_stopped_under_load_is_replaced_and_loses_nobody(service: Service) -> None:
    load = Load(service)
    with load.under_way():
        until(lambda: len(load.told) > CALLERS)
        stopped, at_s = service.children[ENGINE], time.monotonic()
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: replaced(service, stopped))
        away_s = time.monotonic() - at_s
        at_s = time.monotonic()
        until(lambda: load.answered_since(at_s) > CALLERS)
    nobody_is_lost(load)
    print(f"{load.statuses()}, ready after {away_s:.1f} s")
    assert away_s < NOTICED_S + start_s(service) + loaded_s(service)
    assert service.counted("volo_replayed_pictures_total") > 0


def test_an_engine_that_hangs_before_it_is_ready_is_replaced(service: Service) -> None:
    os.kill(service.children[ENGINE], signal.SIGKILL)
    starting = until(lambda: service.children.get("volo: engine"))
    os.kill(starting, signal.SIGSTOP)
    until(lambda: service.said("process hangs, ending it"))
    until(service.is_ready)


def test_a_worker_that_is_killed_takes_only_its_own_connections_with_it(service: Service) -> None:
    load = Load(service)
    doomed = 0
    with load.under_way():
        until(lambda: len(load.told) > CALLERS)
        for _ in range(KILLS):
            at_s, before = time.monotonic(), service.counted("volo_requests_total")
            killed, other = (service.children[f"volo: worker {number}"] for number in (1, 0))
            doomed += len(connections(killed))
            safe = connections(other)
            connected = len(service.said("connected to the engine"))
            os.kill(killed, signal.SIGKILL)
            until(lambda connected=connected: len(service.said("connected to the engine")) > connected)  # type: ignore[misc]
            until(lambda at_s=at_s: load.answered_since(at_s) > CALLERS)  # type: ignore[misc]
            assert service.counted("volo_requests_total") >= before
            assert safe <= connections(other)
    nobody_is_lost(load, None)
    assert load.statuses().get(None, 0) <= doomed < KILLS * CALLERS
    assert service.counted("volo_worker_restarts_total") == KILLS
    assert len(service.said("a worker has left")) == KILLS
    assert service.counted("volo_queue_depth") == service.counted("volo_pictures_in_run") == 0
    print(load.statuses(), doomed)


def connections(pid: int) -> set[str]:
    """Who is connected to a process, by the peer's address."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    peers = {f"socket:[{row[9]}]": row[2] for row in rows if row[3] == "01"}  # established
    files = Path(f"/proc/{pid}/fd").iterdir()
    return {peers[name] for file in files if (name := os.readlink(file)) in peers}


def test_a_worker_that_is_stopped_is_replaced(service: Service) -> None:
    stopped, at_s = service.children["volo: worker 1"], time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: service.children.get("volo: worker 1", stopped) != stopped)
    until(lambda: len(service.said("connected to the engine")) == 3)
    print(f"replaced after {time.monotonic() - at_s:.1f} s")
    assert {ask(service, PICTURES[0]).status_code for _ in range(20)} == {200}


def test_a_device_without_memory_runs_smaller_batches_and_nobody_notices(service: Service) -> None:
    load = Load(service)
    with load.under_way():
        until(lambda: len(load.told) > CALLERS)
        assert service.counted("volo_batch_limit") == 8
        assert ask(service, painted(FILLS)).status_code == 200
        until(lambda: service.counted("volo_batch_limit") == 2)
        at_s = time.monotonic()
        until(lambda: load.answered_since(at_s) > 10 * CALLERS)
    assert set(load.statuses()) == {200}
    assert load.wrong() == []
    assert service.counted("volo_engine_restarts_total") == 0
    assert [line["largest_now"] for line in service.said("out of device memory")][-1] == 2
    print(load.statuses(), len(service.said("out of device memory")))


def test_pictures_that_make_a_run_raise_or_give_nan_fail_alone(service: Service) -> None:
    load = Load(service)
    bad = [painted(colour) for colour in (RAISES, NAN)] * 20
    with load.under_way():
        until(lambda: len(load.told) > CALLERS)
        with ThreadPoolExecutor(4) as callers:
            answers = list(callers.map(lambda picture: ask(service, picture), bad))
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(500, "inference_failed")}
    assert set(load.statuses()) == {200}
    assert load.wrong() == []
    assert service.counted("volo_engine_restarts_total") == 0
    print(load.statuses(), len(answers))


def test_a_device_that_fails_again_and_again_is_not_live_until_an_engine_stays(service: Service) -> None:
    for _ in range(2):  # each is tried on two engines
        assert service.get("/health/live").status_code == 200
        assert ask(service, painted(STICKS)).status_code == 500
        until(service.is_ready)
    answer = service.get("/health/live")
    assert (answer.status_code, answer.json()["status"]) == (503, "not live")
    assert answer.json()["reasons"] == ["embedded: engines die again and again"]
    assert service.said("an engine ends again and again, not live until one stays")
    assert service.predict().status_code == 200
    until(lambda: service.get("/health/live").status_code == 200)
    assert service.said("an engine stays, live again")
