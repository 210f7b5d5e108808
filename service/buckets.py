"""Token buckets, one for each caller, in memory that processes share."""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

SETS, WAYS = 8192, 8
"""A caller's bucket is one of so many that its address may be in: 65,536 callers in 1 MB, however many there are."""
_BUCKET = struct.Struct("<Qd")
_SET_BYTES = WAYS * _BUCKET.size
_SECRET_BYTES = 16


class Buckets:
    """Each caller's token bucket, in memory that processes share.

    Of a bucket there is only the time when it will be full again (the generic cell rate algorithm, ITU-T I.371). Where
    more callers come than there is room for, the fullest buckets are forgotten first: those of callers who have not
    asked for long.
    """

    def __init__(self, rate: float, burst: int, fd: int) -> None:
        """At ``rate`` a second, ``burst`` at once; ``fd`` is of memory that ``create`` has made."""
        self._interval_s = 1 / rate
        self._tolerance_s = (burst - 1) / rate
        self._fd = fd
        self._memory = mmap.mmap(fd, 0)
        self._secret = self._memory[:_SECRET_BYTES]

    @staticmethod
    def create() -> int:
        """A descriptor of memory for buckets, all of them full."""
        fd = os.memfd_create("volo-rate")
        os.ftruncate(fd, _SECRET_BYTES + SETS * _SET_BYTES)
        os.pwrite(fd, os.urandom(_SECRET_BYTES), 0)  # nobody can choose whose bucket it shares
        return fd

    def take(self, caller: str, now: float) -> float:
        """Take a token: 0.0, or in how many seconds there will be one."""
        name = int.from_bytes(blake2b(caller.encode(), digest_size=8, key=self._secret).digest(), "little") or 1
        offset = _SECRET_BYTES + name % SETS * _SET_BYTES
        with self._locked(offset):
            buckets = list(_BUCKET.iter_unpack(self._memory[offset : offset + _SET_BYTES]))
            way = min(range(WAYS), key=lambda way: (buckets[way][0] != name, buckets[way][1]))
            full_at = max(buckets[way][1] if buckets[way][0] == name else 0.0, now)
            wait_s = full_at - now - self._tolerance_s
            if wait_s > 1e-9:
                return wait_s
            _BUCKET.pack_into(self._memory, offset + way * _BUCKET.size, name, full_at + self._interval_s)
        return 0.0

    @contextmanager
    def _locked(self, offset: int) -> Iterator[None]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, _SET_BYTES, offset)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _SET_BYTES, offset)
