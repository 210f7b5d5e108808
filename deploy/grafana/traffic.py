"""A day in minutes: all kinds of callers, rising and falling, a rush that is too much, and an engine that dies."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
import random
import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from service.bench.child import Own
from service.bench.pictures import read

Request = tuple[str, dict[str, Any]]

FORMATS = {"JPEG": 12, "PNG": 2, "WEBP": 3, "AVIF": 1, "GIF": 1, "BMP": 1, "TIFF": 1}
"""How often each comes."""
WIDTHS = (320, 640, 1280, 1920)
RATE = 8.0
"""Requests a second, on average and without the rush."""
RUSH, RUSH_RATE = (0.60, 0.66), 500.0
"""When the rush is, as a part of the whole, and requests a second in it."""
DEATH = 0.85
"""When the engine dies."""
PATIENCE_S = 20.0
IMPATIENCE_S = 0.4
"""How long those wait who leave, in the rush."""


async def drive(service: Own, seconds: float) -> None:
    """Let the service have such a day, in so many seconds."""
    asyncio.get_running_loop().call_later(DEATH * seconds, _kill_engine, service.pid)
    chance = random.Random(0)
    weights, requests = zip(*_requests(list(_pictures(chance))), strict=True)
    begun_s = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=service.url, timeout=PATIENCE_S, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        while (passed := (time.monotonic() - begun_s) / seconds) < 1:
            rush = RUSH[0] <= passed < RUSH[1]
            patience_s = IMPATIENCE_S if rush and chance.random() < 0.1 else PATIENCE_S
            (request,) = chance.choices(requests, weights)
            group.create_task(_send(client, request, patience_s))
            await asyncio.sleep(chance.expovariate(RUSH_RATE if rush else _rate(passed)))


def _rate(passed: float) -> float:
    return RATE * (1 + 0.6 * math.sin(2 * math.pi * (0.9 * passed - 0.25)))


def _kill_engine(supervisor: int) -> None:
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"volo: engine"):
            os.kill(int(child), signal.SIGKILL)


async def _send(client: httpx.AsyncClient, request: Request, patience_s: float) -> None:
    path, content = request
    with suppress(httpx.HTTPError):  # the service counts what becomes of it
        await client.post(path, timeout=patience_s, **content)


def _requests(pictures: list[bytes]) -> Iterator[tuple[float, Request]]:
    """What people ask, and how often: most have one picture named."""
    for picture in pictures:
        yield 60, ("/predict", {"content": picture})
        yield 10, ("/predict?evidence=true", {"files": {"file": picture}})
        yield 8, ("/embed", {"content": picture})
        yield 5, ("/hf", {"content": picture})
        yield 5, ("/predictions/embedded", {"content": picture})
        yield 5, ("/v2/models/embedded/infer", {"json": _tensor(picture)})
        yield 2, ("/predict", {"content": picture[: len(picture) // 2]})
        yield 1, ("/predict?model=another", {"content": picture})
    yield 30, ("/predict", {"content": b"no picture"})
    yield 30, ("/predict?top_k=none", {"content": pictures[0]})
    yield (
        15,
        (
            "/predict/batch",
            {"content": _archive([*pictures[:12], b"no picture"]), "headers": {"Content-Type": "application/zip"}},
        ),
    )


def _tensor(picture: bytes) -> dict[str, Any]:
    data = [base64.b64encode(picture).decode()]
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}]}


def _archive(pictures: list[bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number, picture in enumerate(pictures):
            file.writestr(str(number), picture)
    return archive.getvalue()


def _pictures(chance: random.Random) -> Iterator[bytes]:
    """The samples, in all formats and at several sizes."""
    samples = [Image.open(io.BytesIO(sample)) for sample in read(None)]
    for kind, count in FORMATS.items():
        for _ in range(count):
            sample, width = chance.choice(samples), chance.choice(WIDTHS)
            file = io.BytesIO()
            sample.resize((width, width * sample.height // sample.width)).save(file, kind)
            yield file.getvalue()
