"""Engines and workers that die, hang and fail under load: nobody is lost, and nobody gets what is another's."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_device import DIES, FILLS, HANGS, NAN, RAISES, STICKS
from loading import CALLERS, PICTURES, Load, ask, painted
from prometheus_client.parser import text_string_to_metric_families
from running import ROOT, Service, serving, until

ENGINE = "volo: engine embedded cpu"
KILLS = 10
TIMEOUT_S = 30.0
"""Long enough to outlast an engine's death and its successor's start."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    injected = os.pathsep.join([str(ROOT / "tests/chaos"), str(ROOT)])
    settings = {"VOLO_WORKERS": "2", "VOLO_MAX_BATCH": "8", "VOLO_TIMEOUT_S": str(TIMEOUT_S)}
    with serving(tmp_path, **settings, PYTHONPATH=injected) as service:
        until(service.is_ready)
        yield service


def counted(service: Service, name: str) -> float:
    """The sum of a metric's samples."""
    families = text_string_to_metric_families(service.get("/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def replaced(service: Service, pid: int) -> bool:
    return service.children.get(ENGINE, pid) != pid and service.is_ready()


def nobody_is_lost(load: Load, *allowed: int | None) -> None:
    """Everybody was told something in time, and nothing that was not so."""
    assert set(load.statuses()) <= {200, 503, *allowed}, load.statuses()
    assert load.wrong() == []
    for told in load.told:
        assert told.took_s < TIMEOUT_S + 2
        if told.answer and told.answer.status_code == 503:
            assert int(told.answer.headers["retry-after"]) >= 1


def test_an_engine_that_is_killed_again_and_again_loses_nobody(service: Service) -> None:
    load = Load(service)
    away_s = []
    with load.under_way():
        for _ in range(KILLS):
            at_s = time.monotonic()
            # killed twice before it has come to an end with what it was sent again, a picture would look guilty
            until(lambda at_s=at_s: load.answered_since(at_s) > 4 * CALLERS)  # type: ignore[misc]
            killed, at_s = service.children[ENGINE], time.monotonic()
            os.kill(killed, signal.SIGKILL)
            until(lambda killed=killed: replaced(service, killed))  # type: ignore[misc]
            away_s.append(time.monotonic() - at_s)
    nobody_is_lost(load)
    assert counted(service, "volo_engine_restarts_total") == KILLS
    load_s = max(line["in_s"] for line in service.said("model ready"))
    print(f"{load.statuses()}, ready after {sorted(away_s)}, load and warm-up at most {load_s}, sent again:")
    print(counted(service, "volo_replayed_pictures_total"))
    assert max(away_s) < load_s + 10  # 3 on a machine that does nothing else


@pytest.mark.parametrize("colour", [DIES, HANGS], ids=["dies", "hangs"])
def test_a_picture_that_ends_engines_is_refused_and_its_companions_are_answered(
    service: Service, colour: tuple[int, ...]
) -> None:
    load = Load(service)
    with load.under_way():
        until(lambda: len(load.told) > CALLERS)
        refused = ask(service, painted(colour))
        at_s = time.monotonic()
        until(lambda: load.answered_since(at_s) > CALLERS)
    assert (refused.status_code, refused.json()["code"]) == (500, "inference_failed")
    nobody_is_lost(load)
    assert counted(service, "volo_engine_restarts_total") == 2
    assert service.get("/health/live").status_code == 200
    print(load.statuses(), counted(service, "volo_replayed_pictures_total"))


def test_an_engine_that_is_stopped_under_load_is_replaced_and_loses_nobody(service: Service) -> None:
    load = Load(service)
    with load.under_way():
        until(lambda: len(load.told) > CALLERS)
        stopped, at_s = service.children[ENGINE], time.monotonic()
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: replaced(service, stopped))
        print(f"ready after {time.monotonic() - at_s:.1f} s")
        at_s = time.monotonic()
        until(lambda: load.answered_since(at_s) > CALLERS)
    nobody_is_lost(load)
    print(load.statuses())


def test_an_engine_that_hangs_before_it_is_ready_is_replaced(service: Service) -> None:
    os.kill(service.children[ENGINE], signal.SIGKILL)
    starting = until(lambda: service.children.get("volo: engine"))
    os.kill(starting, signal.SIGSTOP)
    until(lambda: service.said("process hangs, ending it"))
    until(service.is_ready)


def test_a_worker_that_is_killed_takes_only_its_own_connections_with_it(service: Service) -> None:
    load = Load(service)
    with load.under_way():
        for _ in range(KILLS):
            at_s, before = time.monotonic(), counted(service, "volo_requests_total")
            killed = service.children["volo: worker 1"]
            connected = len(service.said("connected to the engine"))
            os.kill(killed, signal.SIGKILL)
            until(lambda connected=connected: len(service.said("connected to the engine")) > connected)  # type: ignore[misc]
            until(lambda at_s=at_s: load.answered_since(at_s) > CALLERS)  # type: ignore[misc]
            assert counted(service, "volo_requests_total") >= before
    nobody_is_lost(load, None)
    assert load.statuses()[None] <= KILLS * CALLERS
    assert counted(service, "volo_worker_restarts_total") == KILLS
    assert len(service.said("a worker has left")) == KILLS
    assert counted(service, "volo_queue_depth") == counted(service, "volo_pictures_in_run") == 0
    print(load.statuses())


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
        assert counted(service, "volo_batch_limit") == 8
        assert ask(service, painted(FILLS)).status_code == 200
        until(lambda: counted(service, "volo_batch_limit") == 2)
        at_s = time.monotonic()
        until(lambda: load.answered_since(at_s) > 10 * CALLERS)
    assert set(load.statuses()) == {200}
    assert load.wrong() == []
    assert counted(service, "volo_engine_restarts_total") == 0
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
    assert counted(service, "volo_engine_restarts_total") == 0
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
