"""What the container, or whatever else has put this process into a control group, lets it have.

https://docs.kernel.org/admin-guide/cgroup-v2.html and, of the first version, cgroup-v1/memory.html and
scheduler/sched-bwc.html there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
"""The first version says a number that no machine has."""


def processors(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """How many processors' time there is, such as 1.5; None if that is not limited."""
    quotas = [
        *(_quota(text) for text in _found(root, membership, "", "cpu.max")),
        *(
            _quota(f"{quota} {period}")
            for quota, period in zip(
                _found(root, membership, "cpu", "cpu.cfs_quota_us"),
                _found(root, membership, "cpu", "cpu.cfs_period_us"),
                strict=False,
            )
        ),
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """How many bytes of memory there are; None if that is not limited."""
    limits = [
        *_found(root, membership, "", "memory.max"),
        *_found(root, membership, "memory", "memory.limit_in_bytes"),
    ]
    return min((int(limit) for limit in limits if limit.isdecimal() and int(limit) < _UNLIMITED), default=None)


def total_memory() -> int:
    """How many bytes of memory there are for us, of all that the machine has."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory()
    return physical if limit is None else min(limit, physical)


def _quota(text: str) -> float | None:
    quota, _, period = text.partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _found(root: Path, membership: Path, controller: str, name: str) -> Iterator[str]:
    """What a file says in our group and in those around it, which limit us too. In a container ours is the root."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            for each in (group, *group.parents):
                if text := _read(root / controller / each / name):
                    yield text


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
