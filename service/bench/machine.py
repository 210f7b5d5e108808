"""What was measured on: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from service.settings import cores

_PACKAGES = (
    "volo-serve",
    "torch",
    "triton",
    "numpy",
    "pillow",
    "fastapi",
    "uvicorn",
    "uvloop",
    "aiohttp",
)


def describe() -> dict[str, object]:
    """Date, machine and versions, as JSON can say them."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def summary() -> str:
    """The machine in a few words."""
    return f"{_processor()}, {cores()} cores"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
