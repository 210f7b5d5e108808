"""What decoding takes is known before, bounded, and no trouble to others."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from bombs import ONE_COLOUR, encoded, gif_of_another_screen, jpeg_in_scans
from calling import application, calling, serving_engine
from PIL import Image
from running import ROOT
from test_api import png

from service.images import Opened, Reduced

SIDE = 2000
RGB = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE // 20, SIDE // 20, 3), np.uint8)).resize(
    (SIDE, SIDE)
)
RGBA = RGB.copy()
RGBA.putalpha(128)
GREY = np.asarray(RGB.convert("L"))
TURNED = Image.Exif()
TURNED[0x112] = 6
FILES: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encoded(RGB, "PNG", compress_level=1),
    "PNG, transparent": lambda: encoded(RGBA, "PNG", compress_level=1),
    "PNG, palette, transparent": lambda: encoded(RGB.quantize(16), "PNG", transparency=0),
    "PNG, 16 bits": lambda: encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", compress_level=1),
    "JPEG, turned": lambda: encoded(RGB, "JPEG", exif=TURNED),
    "JPEG, progressive": lambda: encoded(RGB, "JPEG", progressive=True, subsampling=0),
    "JPEG, CMYK": lambda: encoded(RGB.convert("CMYK"), "JPEG"),
    "JPEG, progressive, CMYK": lambda: encoded(RGB.convert("CMYK"), "JPEG", progressive=True),
    "JPEG, scan by scan": lambda: jpeg_in_scans(RGB),
    "JPEG, scan by scan, CMYK": lambda: jpeg_in_scans(RGB.convert("CMYK")),
    "WebP": lambda: encoded(RGB, "WEBP", lossless=True, method=0),
    "WebP, transparent": lambda: encoded(RGBA, "WEBP", method=0),
    "AVIF, transparent": lambda: encoded(RGBA, "AVIF", speed=10),
    **{f"{name} of one colour": partial(make, (SIDE, SIDE)) for name, make in ONE_COLOUR.items()},
    "GIF on a small screen": lambda: gif_of_another_screen((SIDE, SIDE), (8, 8)),
    "TIFF of floats": lambda: encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
}
READ = """
import re, sys
from pathlib import Path
from service.images import Opened

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

data = Path(sys.argv[1]).read_bytes()
before = peak()
opened = Opened(data, 10**8, int(sys.argv[2]) or None)
opened.read()
print(opened.need_bytes, peak() - before)
"""


@pytest.mark.parametrize(
    ("kind", "at_least"), [*((kind, 0) for kind in FILES), *((kind, 1000) for kind in FILES if kind.startswith("JPEG"))]
)
def test_no_picture_takes_more_memory_than_its_header_says(tmp_path: Path, kind: str, at_least: int) -> None:
    file = tmp_path / "picture"
    file.write_bytes(FILES[kind]())
    read = [sys.executable, "-c", READ, str(file), str(at_least)]
    told = subprocess.run(read, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    need, took = map(int, told.split())
    assert took <= 1.05 * need + 2_000_000  # libraries have a little of their own


async def test_small_pictures_are_answered_while_a_large_one_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun = threading.Event(), threading.Event()
    read = Opened.read

    def read_slowly(opened: Opened) -> Reduced:
        if opened.need_bytes > 32_000_000:
            begun.set()
            assert gate.wait(20)
        return read(opened)

    monkeypatch.setattr(Opened, "read", read_slowly)
    async with serving_engine() as engine, calling(application(engine)) as client:
        large = [asyncio.create_task(client.post("/predict", content=png(3, (3000, 3000)))) for _ in range(9)]
        await asyncio.to_thread(begun.wait, 20)
        for _ in range(3):
            assert (await client.post("/predict", content=png(1))).status_code == 200
        assert not any(request.done() for request in large)
        gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*large)} == {200}


async def test_a_picture_that_would_take_more_than_there_may_be_is_refused_by_its_header() -> None:
    file = BytesIO()
    Image.new("RGB", (13_300, 13_300)).save(file, "PNG")
    async with (
        serving_engine() as engine,
        calling(application(engine, max_pixels=200_000_000, decode_memory=1_000_000_000)) as client,
    ):
        answer = await client.post("/predict", content=file.getvalue())
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_pixels")
        assert "1,415 MB of memory, and 1,000 MB are allowed" in answer.json()["detail"]
