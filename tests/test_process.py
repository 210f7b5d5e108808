"""A child is started again when it ends, ends with its parent, and finds what its parent found."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, alive, environment, run, until

from service import multiprocess
from service.process import REFUSALS, REFUSED, Child, Refused


def decoy(folder: Path, status: int) -> None:
    """A module that ends whoever imports it in place of the real one."""
    (folder / "structlog.py").write_text(f"raise SystemExit({status})")


async def test_a_child_that_ends_is_started_again_until_it_is_told_to_stop() -> None:
    restarts = asyncio.Semaphore(0)
    child = Child("of no known role", {})
    running = asyncio.create_task(child.run(on_restart=restarts.release))
    for _ in range(2):
        await restarts.acquire()
    await child.stop(signal.SIGTERM, patience_s=10)
    await running


async def test_whatever_a_library_writes_where_a_child_reports_the_reports_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = "b'x' * 300_000 + b'\\nready to go\\nready: \\n'"
    chatter = f"import os\nos.write(1, {noise})\nos.read(0, 1)\nos.read(0, 1000)\nos.read(0, 1)"
    (tmp_path / "structlog.py").write_text(chatter)
    monkeypatch.syspath_prepend(tmp_path)
    child = Child("engine", {})
    running = asyncio.create_task(child.run())
    await asyncio.wait_for(child.ready(), 60)
    await child.stop(signal.SIGTERM, patience_s=10)
    await running


async def test_a_child_that_refuses_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoy(tmp_path, REFUSED)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Refused, match="engine"):
        await Child("engine", {}).run()


async def test_a_child_that_has_worked_is_given_up_when_it_refuses_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    end = f"raise SystemExit({REFUSED} if log.stat().st_size > 1 else 1)"  # the first time it ends in another way
    (tmp_path / "structlog.py").write_text(
        f"from pathlib import Path\nlog = Path({str(log)!r})\nlog.open('a').write('.')\n{end}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("service.process.SPELL_S", 0.0)  # it has worked, however short
    with pytest.raises(Refused, match="engine"):
        await Child("engine", {}).run()
    assert log.read_text() == "." * (1 + REFUSALS)


async def test_a_child_is_started_again_even_if_what_it_counted_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def torn(pid: int) -> bool:
        raise RuntimeError("Read beyond file size detected, file is corrupted.")

    monkeypatch.setattr("service.multiprocess.forget", torn)
    restarted = asyncio.Event()
    child = Child("of no known role", {})
    running = asyncio.create_task(child.run(on_restart=restarted.set))
    await restarted.wait()
    await child.stop(signal.SIGTERM, patience_s=10)
    await running


async def test_a_scrape_that_does_not_end_keeps_nobody_waiting_and_what_was_counted_is_kept_after_it() -> None:
    restarts = asyncio.Semaphore(0)
    child = Child("of no known role", {})
    with multiprocess._locked(fcntl.LOCK_SH):  # as a worker has it that is stopped while it is scraped
        running = asyncio.create_task(child.run(on_restart=restarts.release))
        for _ in range(2):
            await asyncio.wait_for(restarts.acquire(), 60)
        assert child._forgetting
    async with asyncio.timeout(20):
        await asyncio.gather(*child._forgetting)
    await child.stop(signal.SIGTERM, patience_s=10)
    await running


async def test_a_child_that_hangs_on_its_way_to_being_ready_is_ended_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "structlog.py").write_text("import time\ntime.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("service.process.START_SILENCE_S", 0.2)
    monkeypatch.setattr("service.process.THAW_S", 0.1)
    restarted = asyncio.Event()
    child = Child("engine", {}, silence_s=10)
    running = asyncio.create_task(child.run(on_restart=restarted.set))
    await asyncio.wait_for(restarted.wait(), 60)
    await child.stop(signal.SIGTERM, patience_s=10)
    await running


async def test_a_child_does_not_import_what_happens_to_lie_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoy(tmp_path, REFUSED)
    monkeypatch.chdir(tmp_path)
    ended = asyncio.Event()
    child = Child("of no known role", {})
    running = asyncio.create_task(child.run(on_restart=ended.set))
    await asyncio.wait([running, waiting := asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert waiting.done()
    await child.stop(signal.SIGTERM, patience_s=10)
    await running


async def test_a_child_that_is_stopped_while_it_is_started_ends_too() -> None:
    child = Child("engine", {})
    running = asyncio.create_task(child.run())
    await asyncio.sleep(0)  # now it is being started
    await child.stop(signal.SIGTERM, patience_s=10)
    await running


async def test_who_waits_for_a_child_that_cannot_be_started_is_told() -> None:
    child = Child("engine", {}, inherit=[2**30])  # no descriptor has such a number
    running = asyncio.create_task(child.run())
    with pytest.raises(Refused, match="cannot be run"):
        await asyncio.wait_for(child.ready(), 20)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await running


PARENT = """
import json, subprocess, sys, time
with subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE) as child:
    child.stdin.write(json.dumps({"litter": sys.argv[2:]}).encode() + b"\\n")
    child.stdin.flush()
    time.sleep(600)
"""
CHILD = (
    "import os, re, time; from service.lifeline import receive_orders; receive_orders(); print(os.getpid(), flush=True)"
)


@pytest.mark.parametrize(
    ("does", "stopped"),
    [("time.sleep(600)", False), ("time.sleep(600)", True), ("re.match('(a+)+$', 'a' * 99 + 'b')", False)],
    ids=["waits", "is stopped", "holds the interpreter"],
)
def test_a_child_ends_with_its_parent_whatever_it_does_and_tidies_up_if_it_can(
    does: str, stopped: bool, tmp_path: Path
) -> None:
    litter = tmp_path / "litter"
    litter.mkdir()
    command = [sys.executable, "-c", PARENT, f"{CHILD}; {does}", str(litter)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        until(lambda: not alive(pid), within_s=5)
    assert litter.exists() == ("match" in does)


@pytest.mark.parametrize("role", ["engine", "worker"])
def test_the_roles_of_children_are_no_commands(role: str) -> None:
    ended = run(role)
    assert ended.returncode == 2
    assert "invalid choice" in ended.stderr


def test_a_child_without_a_parent_says_so() -> None:
    ended = run("_engine")
    assert ended.returncode == 2
    assert ended.stderr.startswith("volo: this is for `volo serve` to start")
    assert len(ended.stderr.splitlines()) == 1
