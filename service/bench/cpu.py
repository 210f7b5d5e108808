"""What a process and its children use of the processors, by what each is called."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree_seconds(root: int) -> dict[str, float]:
    """CPU seconds that a process and all below it have used so far, summed by name."""
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    used: dict[str, float] = defaultdict(float)
    for pid in parents:
        if root in _line_of(pid, parents):
            used[_name(pid)] += _seconds(pid)
    return dict(used)


def machine_seconds() -> float:
    """CPU seconds that everybody on the machine has used so far, other machines on the same hardware included."""
    user, nice, system, _idle, _waiting, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *rest))) * _TICK_S


def cores(before: dict[str, float], after: dict[str, float], seconds: float) -> dict[str, float]:
    """Processors kept busy between two readings, by name; what has ended in between is left out."""
    return {name: (used - before.get(name, 0.0)) / seconds for name, used in after.items()}


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _line_of(pid: int, parents: dict[int, int]) -> set[int]:
    """A process, its parent, and so on up."""
    line = {pid}
    while (pid := parents.get(pid, 0)) and pid not in line:
        line.add(pid)
    return line


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * _TICK_S if fields else 0.0


def _name(pid: int) -> str:
    """ "engine" of "volo: engine cpu", "worker" of "volo: worker 3"; of other programs, their own name."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        if command.startswith("volo: "):
            return command.split()[1]
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
