"""The clock on the wall jumps while callers are served: deadlines and delays know the monotonic clock alone."""

from glob import glob
from pathlib import Path

import pytest
from loading import Load
from running import serving, until

LIBRARY = next(iter(glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), "")
JUMPS = ("-2h", "+3d", "-400d", "+0")


@pytest.mark.skipif(not LIBRARY, reason="NOT SHOWN that nobody notices a clock that jumps: apt-get install faketime")
def test_nobody_notices_that_the_clock_jumps(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with serving(tmp_path / "service", LD_PRELOAD=LIBRARY, **faked) as service:
        until(service.is_ready)
        load = Load(service)
        with load.under_way():
            for jump in JUMPS:
                clock.write_text(jump)
                told, dates = len(load.told), {line["timestamp"][:7] for line in service.log}
                until(lambda told=told: len(load.told) > told + 100)  # type: ignore[misc]
                assert service.is_ready()
        assert load.statuses().keys() == {200}
        assert not load.wrong()
        assert len(dates) > 1  # it did jump
        assert not service.said("process hangs, ending it")
