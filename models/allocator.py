"""How the process gets and keeps memory for what lies between a model's layers."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what is freed, instead of giving it back to the system and asking for it again.

    A forward on the CPU allocates and frees tens of megabytes for every layer. By default large pieces are mapped and
    unmapped each time, and the kernel zeroes them page by page: up to a quarter of the time of a batch. From now on the
    process keeps the most it ever needs, so call this when the weights are loaded, and only where they run on the CPU.
    What was freed before is given back first. Elsewhere than on glibc this does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.malloc_trim(0)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)
