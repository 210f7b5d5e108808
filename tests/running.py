"""Commands of ours as real processes, for the tests that need them."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
CAT = ROOT / "models/data/samples/cat.jpg"
PATIENCE_S = 180.0
"""Far more than anything takes; only a test that fails waits so long."""


def until(found: Callable[[], T | None], within_s: float = PATIENCE_S) -> T:
    """What ``found`` returns as soon as it is something."""
    deadline_s = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline_s, f"it did not happen within {within_s} s"
        time.sleep(0.02)
    return value


def environment(**settings: str) -> dict[str, str]:
    """Ours without its settings, and with these; answers shall not depend on what the processor computes in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("VOLO_", "PROMETHEUS_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "VOLO_PRECISION": "float32", **settings}


def run(
    *command: str, cwd: Path = ROOT, within: Sequence[str] = (), **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run ``volo`` with a command to its end, by way of the command ``within``."""
    return subprocess.run(
        [*within, sys.executable, "-m", "service", *command],
        cwd=cwd,
        env={**environment(**settings), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """``volo`` with a command, under way."""
    with subprocess.Popen(
        [sys.executable, "-m", "service", *command], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class Service:
    """A running process that serves, or is about to."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def text(self) -> str:
        """All that it has said so far."""
        return self._log.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its whole lines so far, which are JSON."""
        return [json.loads(line) for line in self.text.splitlines(keepends=True) if line.endswith("\n")]

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines about an event."""
        return [line for line in self.log if line["event"] == event]

    @property
    def url(self) -> str:
        """Where it listens, by what it says."""
        return until(lambda: re.search(r"https?://127\.0\.0\.1:\d+", self.text))[0]

    @property
    def children(self) -> dict[str, int]:
        """Its children's process ids by title."""
        return children(self.process.pid)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S)

    def predict(self) -> httpx.Response:
        """Have the cat named, over a connection of its own."""
        return httpx.post(f"{self.url}/predict", content=CAT.read_bytes(), timeout=PATIENCE_S)

    def counted(self, name: str, **labels: str) -> float:
        """The values of a metric's samples with these labels, in all."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def is_ready(self) -> bool:
        return self.get("/health/ready").status_code == 200


@contextmanager
def serving(folder: Path, *command: str, within: Sequence[str] = (), **settings: str) -> Iterator[Service]:
    """``volo serve`` (or another command) on a free port, with its temporary files and its log in a folder, and by way
    of the command ``within``."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", *(command or ("service", "serve", "--port", "0"))],
            cwd=ROOT,
            env=environment(TMPDIR=str(folder / "tmp"), **{"VOLO_MAX_BATCH": "2", **settings}),
            stdin=subprocess.DEVNULL,
            stderr=stream,
        )
    try:
        yield Service(process, log)
    finally:
        process.kill()  # and with it go its children: that is tested
        process.wait()


def children(parent: int) -> dict[str, int]:
    """A process's children's process ids by title."""
    return {_title(pid): pid for pid in _pids() if _parent(pid) == parent}


def alive(pid: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
