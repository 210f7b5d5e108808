"""How the process gets and keeps memory for what lies between a model's layers."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what is freed, instead of giving it back to the system and asking for it again.

    A forward on the CPU allocates and frees tens of megabytes for every layer. By default each of these is a mapping
    of its own, and the kernel zeroes it page by page on every run: a quarter of the time of a batch. The process
    afterwards keeps the most it ever needed. Elsewhere than on glibc this does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)
