"""Damaged pictures, damaged requests and odd ones: as many as come in ``FUZZ_S`` seconds each, by default 60."""

import base64
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from bombs import encoded
from loading import PICTURES, ask, same
from packing import FORMS
from PIL import ExifTags, Image
from running import PATIENCE_S, ROOT, Service, environment, peak_bytes, serving, until
from test_leavers import held, is_quiet

FUZZ_S = float(os.environ.get("FUZZ_S", "60"))
CALLERS = 4
LONGEST_S = 10.0
"""May one answer take, on a machine that others use too."""
DECODE_MEMORY = 300_000_000
BESIDE = 200_000_000
"""Bytes for what a worker has beside large pictures: small ones, bodies, batches, and what its libraries keep."""
SMALL = Image.open(io.BytesIO(PICTURES[0])).convert("RGB").resize((96, 64))
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6
FILES = [
    encoded(SMALL, "JPEG"),
    encoded(
        SMALL, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    encoded(SMALL.convert("CMYK"), "JPEG"),
    encoded(SMALL, "PNG"),
    encoded(SMALL.quantize(), "PNG", transparency=3),
    encoded(SMALL.convert("I;16"), "PNG"),
    encoded(SMALL, "WEBP"),
    encoded(SMALL.convert("RGBA"), "WEBP", lossless=True),
    encoded(SMALL, "WEBP", save_all=True, append_images=[SMALL.rotate(90)] * 2),
    encoded(SMALL.quantize(), "GIF", save_all=True, append_images=[SMALL.quantize()]),
    encoded(SMALL, "BMP"),
    encoded(SMALL.quantize(16), "BMP"),
    *(encoded(SMALL, "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    encoded(SMALL.convert("F"), "TIFF"),
    encoded(SMALL, "AVIF", quality=40),
]
NUMBERS = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\x01",
    b"\xff\xd9",
    b"\r\n",
    b"-1",
]


def request(path: str, body: bytes, kind: str = "image/jpeg", *more: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(head).encode() + body


def requests() -> list[bytes]:
    """One of every kind that there is."""
    picture = FILES[0]
    text = base64.b64encode(picture).decode()
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + picture + b"\r\n--b--\r\n"
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": list(range(12))}
    binary = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(picture) + 4}}
    head = json.dumps({"inputs": [binary]}).encode()
    lengths = f"Inference-Header-Content-Length: {len(head)}"
    return [
        request("/predict?top_k=3&evidence=true", picture),
        request("/predict", form, "multipart/form-data; boundary=b"),
        request("/predict", json.dumps({"image": text}).encode(), "application/json"),
        request("/predict", picture, "image/jpeg", "X-Request-Timeout-Ms: 900", "Expect: 100-continue"),
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(picture), picture),
        *(request("/predict/batch", pack({"a": picture, "b": b"none"}), kind) for kind, pack in FORMS.values()),
        request("/embed", picture),
        request("/hf", json.dumps({"inputs": text, "parameters": {"top_k": 2}}).encode(), "application/json"),
        request("/predictions/embedded", picture),
        request("/v2/models/embedded/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json"),
        request(
            "/v2/models/embedded/infer",
            head + len(picture).to_bytes(4, "little") + picture,
            "application/octet-stream",
            lengths,
        ),
        request("/hf/embedded", json.dumps({"inputs": text, "parameters": {"top_k": 2}}).encode(), "application/json"),
        request("/v2/repository/index", b"{}", "application/json"),
        request("/admin/reload", b"{}", "application/json", "X-API-Key: wrong"),
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\nGET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n",
    ]


def damaged(data: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """With one to five things done to it."""
    ways: list[Callable[[bytearray, int, int], None]] = [
        lambda file, at, _: file.__setitem__(at, dice.randrange(256)),
        lambda file, at, _: file.__setitem__(slice(at, at + 4), dice.choice(NUMBERS)),
        lambda file, at, _: file.__delitem__(slice(at, None)),
        lambda file, at, to: file.__delitem__(slice(at, to)),
        lambda file, at, to: file.__setitem__(slice(at, at), file[at:to] * dice.randrange(1, 20)),
        lambda file, at, to: file.__setitem__(slice(at, to), dice.choice(others)[at:to]),
    ]
    file = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        # most of what a parser looks at stands at the beginning
        at = dice.randrange(max(1, len(file) if dice.random() < 0.5 else min(len(file), 200)))
        if file:
            dice.choice(ways)(file, min(at, len(file) - 1), at + dice.randrange(1, 64))
    return bytes(file)


@contextmanager
def unharmed(folder: Path, **settings: str) -> Iterator[Service]:
    """A service that afterwards is as it was."""
    with serving(folder, VOLO_WORKERS="1", VOLO_DECODE_MEMORY=str(DECODE_MEMORY), **settings) as service:
        until(service.is_ready)
        right = ask(service, PICTURES[0]).json()["predictions"]
        processes = {name: service.children[name] for name in ("volo: worker 0", "volo: engine embedded cpu")}
        before = {name: held(pid) for name, pid in processes.items()}
        peaks = {name: peak_bytes(pid) for name, pid in processes.items()}
        yield service
        until(lambda: is_quiet(service))
        until(lambda: held(processes["volo: worker 0"]).files <= before["volo: worker 0"].files)
        assert {name: service.children[name] for name in processes} == processes
        for name, pid in processes.items():
            print(f"{name}: peak {peaks[name] / 1e6:.0f} -> {peak_bytes(pid) / 1e6:.0f} MB")
            assert peak_bytes(pid) < peaks[name] + DECODE_MEMORY + BESIDE
            assert held(pid).memory_bytes < before[name].memory_bytes + 150_000_000
        for fault in ("internal_error", "inference_failed"):
            assert service.counted("volo_requests_total", outcome=fault) == 0
        assert not [line for line in service.log if line["level"] in ("error", "critical")]
        assert same(ask(service, PICTURES[0]).json()["predictions"], right)


def many(send: Callable[[random.Random], str]) -> Counter[str]:
    """What was told to callers who send one thing after the other, each from a seed of its own."""
    end_s, longest_s = time.monotonic() + FUZZ_S, [0.0]

    def caller(seed: int) -> Counter[str]:
        dice, told = random.Random(seed), Counter[str]()
        while (begun_s := time.monotonic()) < end_s:
            told[send(dice)] += 1
            longest_s.append(time.monotonic() - begun_s)
        return told

    with ThreadPoolExecutor(CALLERS) as threads:
        told = sum(threads.map(caller, range(CALLERS)), Counter[str]())
    print(f"{told.total():,}, the longest {max(longest_s):.2f} s: {told}")
    assert max(longest_s) < LONGEST_S
    return told


def test_a_damaged_picture_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    with unharmed(tmp_path / "service") as service, httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:

        def send(dice: random.Random) -> str:
            answer = client.post("/predict", content=damaged(dice.choice(FILES), dice, FILES))
            return "ok" if answer.status_code == 200 else str(answer.json()["code"])

        told = many(send)
        assert told["ok"] > 0
        assert told.keys() <= {
            *("ok", "empty_body", "not_an_image", "truncated_image", "too_many_pixels", "too_intricate", "overloaded")
        }


def test_a_damaged_request_is_answered_or_hung_up_on(tmp_path: Path) -> None:
    seeds = requests()
    with unharmed(tmp_path / "service", VOLO_TIMEOUT_S="2", VOLO_ADMIN_KEY="secret") as service:
        url = httpx.URL(service.url)

        def send(dice: random.Random) -> str:
            with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
                with suppress(ConnectionError):
                    connection.sendall(damaged(dice.choice(seeds), dice, seeds))
                    connection.shutdown(socket.SHUT_WR)
                received = b""
                with suppress(ConnectionError):
                    while some := connection.recv(65_536):
                        received += some
            assert not received or received.startswith(b"HTTP/1.1 ")
            return received[9:12].decode() or "hung up"

        told = many(send)
        assert told["200"] > 0
        assert "500" not in told


def test_whatever_the_contract_lets_callers_ask_is_answered_as_it_says(tmp_path: Path) -> None:
    """What schemathesis makes of it, other than in `make test` each time."""
    seed = random.randrange(1 << 32)
    print(f"--seed={seed}")
    with unharmed(tmp_path / "service") as service:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", f"--seed={seed}"),
                *("--phases=examples,coverage,fuzzing", f"--max-time={FUZZ_S:.0f}"),
                *("--generation-database=none", "--no-color"),
            ],
            cwd=ROOT,
            env=environment(API_KEY="none", PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=FUZZ_S + PATIENCE_S,
        )
        print(ended.stdout, ended.stderr)
    assert ended.returncode == 0
