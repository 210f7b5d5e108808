"""Pictures and archives fuzzed by what they reach in our and Pillow's Python: `make fuzz`, for ``FUZZ_S`` seconds.

Whatever a file does but be read or refused is a finding, and so is to take more memory than its header told, or 20 s.
It is written to a file that libFuzzer names: `make fuzz FILE=...` looks at it once more.
"""

import asyncio
import os
import re
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import atheris
import numpy as np

with atheris.instrument_imports(include=["service.", "PIL.", "tarfile", "zipfile"]):
    from service import avif
    from service.archives import Limits
    from service.errors import ServiceError
    from service.inference import Crop
    from service.settings import Settings
    from service.tars import tar_entries
    from service.zips import zip_entries

from packing import FORMS
from test_fuzz import FILES

SETTINGS = Settings(max_pixels=4_000_000, decode_memory=200_000_000)
VIEW = SimpleNamespace(image_size=32, crop_pct=0.9)
PIXELS = np.empty((32, 32, 3), np.uint8)
LIMITS = Limits(picture_bytes=1_000_000, total_bytes=5_000_000, pictures=100)
SLACK_BYTES = 20_000_000
"""Of a process that has read others: what libraries keep, and what Pillow and we hold of the file itself."""


def one(data: bytes) -> None:
    """Whatever it is, as the service takes it."""
    if data[:2] == b"PK":
        asyncio.run(unpack(data, zip=True))
    elif data[:2] == b"\x1f\x8b" or data[257:262] == b"ustar":
        asyncio.run(unpack(data, zip=False))
    else:
        with suppress(ServiceError, LookupError, ValueError, struct.error):  # as it says
            avif.decoded_pixels(data)
        look(data)


def look(data: bytes) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, told = memory("VmRSS"), 0
    with suppress(ServiceError):
        crop = Crop(data, SETTINGS, VIEW)
        told = crop.need_bytes
        crop.write(PIXELS)
    took = memory("VmHWM") - before
    if took > 1.05 * told + SLACK_BYTES:
        raise AssertionError(f"{took:,} bytes were taken, and {told:,} were told")


def memory(kind: str) -> int:
    found = re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


async def unpack(archive: bytes, *, zip: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield archive

    with suppress(ServiceError):
        async for entry in (zip_entries if zip else tar_entries)(chunks(), LIMITS):
            assert isinstance(entry.content, ServiceError) or len(entry.content) <= LIMITS.picture_bytes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{number}.jpg": data for number, data in enumerate(FILES[:3])}
        archives = [FORMS[kind][1](files) for kind in ("zip", "tar", "tar.gz")]
        for number, seed in enumerate([*FILES, *archives]):
            (Path(folder) / str(number)).write_bytes(seed)
        limits = [f"-max_total_time={os.environ.get('FUZZ_S', '600')}", "-timeout=20", "-max_len=40000"]
        atheris.Setup([sys.argv[0], *limits, *(sys.argv[1:] or [folder])], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
