"""The most memory that something needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory in use while ``work`` is done: of the device, or of this process where that is the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # where it is not allowed, the peak is that since the process began
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; proc(5)
    work()
    return _resident("VmHWM")


def used_bytes(device: torch.device) -> int:
    """Memory in use now, as ``peak_bytes`` counts it."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
