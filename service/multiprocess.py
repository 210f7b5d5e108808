"""Several processes count, and what Prometheus is told is their one sum, whoever is asked and whoever has ended."""

import atexit
import fcntl
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# prometheus_client looks for its directory when it is imported: the first of our processes makes one, and those that
# it starts inherit it.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    try:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = _ours = tempfile.mkdtemp(prefix="volo-metrics-")
    except OSError as error:  # nothing of ours can do without
        sys.exit(f"volo: there is no folder for temporary files: {error.strerror}")
else:
    _ours = ""

import prometheus_client.values
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

__all__ = [
    "CONTENT_TYPE",
    "Counter",
    "Gauge",
    "Histogram",
    "Metric",
    "NoRoom",
    "begin",
    "exposition",
    "forget",
    "litter",
    "remove",
]

CONTENT_TYPE = CONTENT_TYPE_LATEST
ENDED = "ended"
"""What stands for a process id in the names of the files with all that processes counted which have ended."""
COUNTS_BYTES = 1 << 18
"""A process's counters take so much room from the start, and its histograms: more than those of several models need."""
GAUGES_BYTES = 1 << 14
"""Its gauges of each kind."""
TRIES = 5


class NoRoom(OSError):
    """What is counted has no room on the disk; the message says where."""


class _Allocated(MmapedDict):
    """A process's file of values, which has its room on the disk before anything is written to it.

    Prometheus' own gets it as it is written to, through a mapping: on a full disk that ends the process (SIGBUS).
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            _allocate(filename, GAUGES_BYTES if os.path.basename(filename).startswith("gauge") else COUNTS_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + 32 > self._capacity:  # it will be doubled
            _allocate(self._fname, 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def _private(path: str, flags: int) -> int:
    """A descriptor of a file that, made anew, is this user's alone, whoever may look into the folder."""
    return os.open(path, flags, 0o600)


def _allocate(path: str, size: int) -> None:
    new = not os.path.exists(path)
    try:
        # not the descriptor that writes: where a file system cannot allocate, glibc does not for one that appends
        with open(_private(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if new:
            Path(path).unlink(missing_ok=True)  # empty, it would spoil every scrape
        raise NoRoom(f"no room for {size:,} bytes of metrics in {os.path.dirname(path)}: {error.strerror}") from error


prometheus_client.values.MmapedDict = _Allocated  # type: ignore[attr-defined]  # there is no other way to hand it in


class _Facts(Collector):
    """What is known when it is asked for, and need not be counted."""

    def __init__(self, facts: Iterable[Metric]) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        return self._facts


def exposition(facts: Iterable[Metric] = ()) -> bytes:
    """All processes' metrics in Prometheus' text format, and the ``facts`` beside them."""
    for _ in range(TRIES - 1):
        with suppress(struct.error):  # a process has just made its file, and not filled it yet
            return _exposition(facts)
    return _exposition(facts)


def _exposition(facts: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Facts(facts))
    with _locked(fcntl.LOCK_SH):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def begin() -> None:
    """Make the directory ready for a service, before anything is counted.

    What an earlier one has left there, where somebody else made it, is dropped: gauges of processes that were killed
    would be told for ever.

    Raises:
        OSError: it cannot be made or written, or has no room.
    """
    _folder().mkdir(parents=True, exist_ok=True)
    with _locked(fcntl.LOCK_EX):
        for left in _folder().glob("*.db"):
            left.unlink()
        for kind in ("counter", "histogram"):
            _allocate(str(_folder() / f"{kind}_{ENDED}.db"), COUNTS_BYTES)


def forget(pid: int) -> bool:
    """Drop the gauges of a process that ended; what it counted is added up with what others did that have ended.

    Files of their own for all of them would fill the disk under a process that ends again and again. Raises whatever
    comes of a file that is torn; what it held is lost then. False if it cannot be done now, because of a scrape.
    """
    # a scrape between the two steps would see what was counted twice, or not at all
    with suppress(BlockingIOError), _locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        for kind in ("counter", "histogram"):
            counted = _folder() / f"{kind}_{pid}.db"
            if counted.exists():
                try:
                    _add(counted, _folder() / f"{kind}_{ENDED}.db")
                finally:
                    counted.unlink()  # torn, it would spoil every scrape
        return True
    return False


def _add(counted: Path, to: Path) -> None:
    if not counted.stat().st_size:  # it ended just when it began to count
        return
    values = list(MmapedDict.read_all_values_from_file(str(counted)))  # type: ignore[no-untyped-call]
    sums = _Allocated(str(to))
    for key, value, _, _ in values:
        before, _ = sums.read_value(key)  # type: ignore[no-untyped-call]
        sums.write_value(key, before + value, 0.0)  # type: ignore[no-untyped-call]
    sums.close()  # type: ignore[no-untyped-call]


@contextmanager
def _locked(how: int) -> Iterator[None]:
    with open(_folder() / "lock", "a", opener=_private) as lock:
        fcntl.flock(lock, how)
        yield


def litter() -> list[str]:
    """The directory that is to go with the service: none if somebody else made it."""
    return [_ours] if _ours else []


def _folder() -> Path:
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


@atexit.register
def remove() -> None:
    """Drop all that was counted, because the service is over; a directory that somebody else made stays."""
    if _ours:
        shutil.rmtree(_ours, ignore_errors=True)
