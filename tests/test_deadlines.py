"""A running service does nothing for those it cannot answer in time, and something for everybody else."""

import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image
from running import CAT, PATIENCE_S, Service, serving, until

PICTURE = CAT.read_bytes()
ASKED: dict[str, dict[str, Any]] = {
    "/predict": {"content": PICTURE},
    "/embed": {"content": PICTURE},
    "/hf": {"content": PICTURE},
    "/predictions/embedded": {"content": PICTURE},
    "/v2/models/embedded/infer": {
        "json": {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}]}
    },
    "/predict/batch": {"files": [("file", ("cat.jpg", PICTURE, "image/jpeg"))]},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("deadlines") / "service") as service:
        until(service.is_ready)
        yield service


def asked(service: Service, path: str, **arguments: Any) -> httpx.Response:
    return httpx.post(f"{service.url}{path}", timeout=PATIENCE_S, **{**ASKED[path], **arguments})


@pytest.mark.parametrize("path", ASKED)
def test_what_one_millisecond_is_not_enough_for_never_reaches_the_device(service: Service, path: str) -> None:
    assert asked(service, path).status_code == 200
    before = service.counted("volo_pictures_total")
    for _ in range(10):
        hurried = asked(service, path, headers={"X-Request-Timeout-Ms": "1"})
        told = json.loads(hurried.text)
        if path == "/predict/batch":
            assert (told["status"], told["code"]) == (504, "deadline_exceeded")
        else:
            assert hurried.status_code in (503, 504)  # the time was up when the body was there, or soon would be
            assert (hurried.status_code == 503) == ("Retry-After" in hurried.headers)
    assert asked(service, path).status_code == 200
    assert service.counted("volo_pictures_total") == before + 1


@pytest.mark.parametrize("path", sorted(set(ASKED) - {"/predict/batch"}))
def test_what_is_refused_at_the_door_need_not_be_sent(service: Service, path: str) -> None:
    url = httpx.URL(service.url)
    with socket.create_connection((url.host, url.port), timeout=PATIENCE_S) as caller:
        head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\nX-Request-Timeout-Ms: 1\r\n\r\n"
        caller.sendall(head.encode())
        assert caller.recv(1000).startswith(b"HTTP/1.1 503 ")
        caller.sendall(bytes(1000000) + b"GET /health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 200 OK" in b"".join(iter(lambda: caller.recv(65536), b""))


def test_tritons_timeout_holds_as_the_header_does(service: Service) -> None:
    path = "/v2/models/embedded/infer"
    before = service.counted("volo_pictures_total")
    hurried = asked(service, path, json={**ASKED[path]["json"], "parameters": {"timeout": 1000}})
    assert hurried.status_code in (503, 504)
    assert asked(service, path, json={**ASKED[path]["json"], "parameters": {"timeout": 0}}).status_code == 200
    assert service.counted("volo_pictures_total") == before + 1


def test_a_decode_that_outlasts_its_deadline_is_accounted_for_until_its_slot_is_back(service: Service) -> None:
    slow = io.BytesIO()
    Image.new("RGBA", (7000, 7000)).save(slow, "PNG", compress_level=1)  # it takes some seconds to read
    late = asked(service, "/predict", content=slow.getvalue(), headers={"X-Request-Timeout-Ms": "300"})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert service.counted("volo_abandoned_decodes") == service.counted("volo_slots_lent") == 1
    until(lambda: service.counted("volo_abandoned_decodes") == 0)
    assert service.counted("volo_slots_lent") == 0
    assert asked(service, "/predict").status_code == 200


def test_single_requests_are_answered_while_a_long_batch_gets_on(service: Service) -> None:
    """They are sent one after the other: did each wait for the batch's end, no two would fit into it."""
    files = [("file", (str(number), PICTURE, "image/jpeg")) for number in range(150)]
    lines: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(read, service, files, lines)
        until(lambda: lines)
        answered = 0
        while not batch.done():
            assert asked(service, "/predict").status_code == 200
            answered += 1
        batch.result()
    assert [line["status"] for line in lines] == [200] * len(files)
    assert answered > 5


def read(service: Service, files: list[Any], lines: list[dict[str, Any]]) -> None:
    """Send many pictures, and note each line of the answer as it comes."""
    with httpx.stream("POST", f"{service.url}/predict/batch", files=files, timeout=PATIENCE_S) as answer:
        lines.extend(json.loads(line) for line in answer.iter_lines())
