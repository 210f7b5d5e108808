"""The whole service as processes: it starts, outlives the death of its parts, and leaves nothing behind."""

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image
from running import CAT, PATIENCE_S, ROOT, Service, alive, environment, serving, until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), VOLO_WORKERS="2") as service:
        until(service.is_ready)
        yield service


def test_it_says_where_it_listens_and_how_to_try_it(service: Service) -> None:
    (ready,) = until(lambda: service.said("ready"))
    assert ready["url"] == service.url
    assert ready["try_it"] == f"curl --data-binary @models/data/samples/coffee.jpg {service.url}/predict"
    assert (ready["model"], ready["device"]) == ("embedded", "cpu")


def test_how_long_it_took_to_start_is_told(service: Service) -> None:
    until(service.is_ready)
    assert service.counted("volo_model_load_seconds") > 0
    assert service.counted("volo_model_warm_up_seconds") > 0


def test_it_names_what_is_in_a_picture(service: Service) -> None:
    before = service.counted("volo_picture_bytes_sum"), service.counted("volo_picture_pixels_sum")
    answer = service.predict()
    after = service.counted("volo_picture_bytes_sum"), service.counted("volo_picture_pixels_sum")
    with Image.open(CAT) as cat:
        assert after == (before[0] + CAT.stat().st_size, before[1] + cat.width * cat.height)
    assert answer.status_code == 200
    assert answer.json()["model"] == "embedded"
    assert len(answer.json()["predictions"]) == 5


def test_sockets_and_metrics_are_this_users_alone_wherever_they_lie(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    with serving(tmp_path, PROMETHEUS_MULTIPROC_DIR=str(metrics)) as service:
        until(service.is_ready)
        (sockets,) = (tmp_path / "tmp").glob("volo-*")
        inside = [*sockets.iterdir(), *metrics.iterdir()]
        assert {path.suffix for path in inside} == {".sock", ".db", ""}
        assert {stat.S_IMODE(path.stat().st_mode) for path in inside} == {0o600}
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700


def test_titles_say_who_is_who(service: Service) -> None:
    assert Path(f"/proc/{service.process.pid}/cmdline").read_text().startswith("volo: supervisor")
    assert sorted(service.children) == ["volo: engine embedded cpu", "volo: worker 0", "volo: worker 1"]


def test_http_workers_stay_small(service: Service) -> None:
    status = Path(f"/proc/{service.children['volo: worker 0']}/status").read_text()
    resident_kb = int(status.partition("VmRSS:")[2].split()[0])
    assert resident_kb < 150_000


def test_http_workers_do_without_torch() -> None:
    check = "import sys, service.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=environment()).returncode == 0


def test_all_workers_metrics_are_one_truth(service: Service) -> None:
    workers = [service.children["volo: worker 0"], service.children["volo: worker 1"]]
    before = service.counted("volo_requests_total", endpoint="/predict", outcome="ok")
    pictures = service.counted("volo_pictures_total")
    for stopped, count in zip(workers, (2, 3), strict=True):
        os.kill(stopped, signal.SIGSTOP)  # so that the other one answers
        for _ in range(count):
            assert service.predict().status_code == 200
        os.kill(stopped, signal.SIGCONT)
    # a worker counts when it has answered, and shall not be stopped between the one and the other
    until(lambda: service.counted("volo_requests_total", endpoint="/predict", outcome="ok") == before + 5)
    for stopped in workers:
        os.kill(stopped, signal.SIGSTOP)
        assert service.counted("volo_requests_total", endpoint="/predict", outcome="ok") == before + 5
        assert service.counted("volo_request_seconds_count", endpoint="/predict") == before + 5
        assert service.counted("volo_stage_seconds_count", stage="device") == before + 5
        assert service.counted("volo_pictures_total") == pictures + 5
        os.kill(stopped, signal.SIGCONT)


def test_a_killed_worker_is_replaced_and_what_it_counted_stays(service: Service) -> None:
    before = service.counted("volo_requests_total", endpoint="/predict", outcome="ok")
    killed = service.children["volo: worker 1"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: service.children.get("volo: worker 1", killed) != killed)
    until(lambda: len([line for line in service.said("connected to the engine") if line["process"] == "worker 1"]) == 2)
    assert service.predict().status_code == 200
    until(lambda: service.counted("volo_requests_total", endpoint="/predict", outcome="ok") == before + 1)
    assert service.counted("volo_worker_restarts_total") == 1


def test_a_killed_engine_is_replaced_and_counted(service: Service) -> None:
    killed = service.children["volo: engine embedded cpu"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: not service.is_ready())
    refused = service.predict()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    until(lambda: service.children.get("volo: engine embedded cpu", killed) != killed and service.is_ready())
    assert service.predict().status_code == 200
    assert service.counted("volo_engine_restarts_total") == 1


def test_its_log_is_json_and_has_the_request_ids(service: Service) -> None:
    answer = httpx.get(f"{service.url}/nothing%1b%5B2J%0A", headers={"x-request-id": "from-the-caller"})
    assert answer.status_code == 404
    (line,) = until(lambda: [line for line in service.said("request") if line["request_id"] == "from-the-caller"])
    assert line["outcome"] == "not_found"
    assert line["endpoint"] == "unmatched"
    assert line["process"].startswith("worker ")


def test_asked_to_stop_it_is_not_ready_first_then_answers_all_it_has_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, VOLO_WORKERS="1", VOLO_GRACE_S="1") as service:
        until(service.is_ready)
        children = service.children
        with _half_sent_picture(service.url) as connection:
            service.process.terminate()
            until(lambda: not service.is_ready())
            assert service.get("/health/ready").json()["reasons"] == ["the service is shutting down"]
            assert service.predict().status_code == 200
            until(lambda: _refuses(service.url))
            connection.sendall(CAT.read_bytes()[1000:])
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert service.process.wait(PATIENCE_S) == 0
    assert not any(alive(pid) for pid in children.values())
    assert list((tmp_path / "tmp").iterdir()) == []


def _half_sent_picture(url: str) -> socket.socket:
    """A connection whose request is being read by the service."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {CAT.stat().st_size}\r\nExpect: 100-continue\r\n\r\n"
    connection.sendall(head.encode())
    assert connection.recv(100).startswith(b"HTTP/1.1 100")
    connection.sendall(CAT.read_bytes()[:1000])
    return connection


def test_asked_to_stop_a_batch_that_goes_on_ends_with_a_line_that_says_why(tmp_path: Path) -> None:
    """One picture after the other, for as long as there are answers."""
    line = json.dumps({"image": base64.b64encode(CAT.read_bytes()).decode()}).encode() + b"\n"
    with serving(tmp_path, VOLO_WORKERS="1", VOLO_GRACE_S="0", VOLO_TIMEOUT_S="2") as service:
        until(service.is_ready)
        url = httpx.URL(service.url)
        with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
            connection.sendall(b"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n")
            connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            received, told = b"", False
            while b"shutting down" not in received:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b"%x\r\n%s\r\n" % (len(line), line))
                received += (some := connection.recv(1 << 16))
                assert some, received
                if not told and b'"status":200' in received:
                    service.process.terminate()
                    told = True
            assert b"0\r\n\r\n" in received or connection.recv(1 << 16).endswith(b"0\r\n\r\n")
        assert service.process.wait(PATIENCE_S) == 0
    (request,) = service.said("request")[-1:]
    assert (request["endpoint"], request["outcome"]) == ("/predict/batch", "engine_unavailable")


def _refuses(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:  # it was in line when listening ended
        return False
    return False


def test_ctrl_c_ends_it_at_once_even_while_it_starts(tmp_path: Path) -> None:
    with serving(tmp_path, VOLO_GRACE_S="1000") as service:
        until(lambda: "volo: worker 0" in service.children)
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in service.text


def test_a_second_ctrl_c_does_not_wait_for_what_is_under_way(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        until(service.is_ready)
        children = service.children
        with _half_sent_picture(service.url):
            service.process.send_signal(signal.SIGINT)
            until(lambda: service.said("stopping"))
            service.process.send_signal(signal.SIGINT)
            assert service.process.wait(PATIENCE_S) == 130
        until(lambda: not any(alive(pid) for pid in children.values()), within_s=2)
        assert list((tmp_path / "tmp").iterdir()) == []
        assert "Traceback" not in service.text


def test_if_the_supervisor_is_killed_its_children_go_too(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        until(lambda: {"volo: worker 0", "volo: engine"} <= service.children.keys())
        children = service.children
        service.process.kill()
        until(lambda: not any(alive(pid) for pid in children.values()), within_s=2)
        assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "stopped", [(), ("volo: engine embedded cpu", "volo: worker 1")], ids=["all at work", "stopped"]
)
def test_if_the_supervisor_is_killed_under_load_its_children_go_too(tmp_path: Path, stopped: tuple[str, ...]) -> None:
    with serving(tmp_path, VOLO_WORKERS="2") as service, ThreadPoolExecutor(8) as callers:
        until(service.is_ready)
        children = service.children
        for _ in range(8):
            callers.submit(_ask_until_it_is_gone, service)
        until(lambda: service.counted("volo_pictures_total") > 16)
        for title in stopped:
            os.kill(children[title], signal.SIGSTOP)
        service.process.kill()
        until(lambda: not any(alive(pid) for pid in children.values()), within_s=2)
        assert list((tmp_path / "tmp").iterdir()) == []


def _ask_until_it_is_gone(service: Service) -> None:
    with suppress(httpx.TransportError):
        while True:
            service.predict()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_asked_for_and_missing_is_a_refusal_to_start(tmp_path: Path) -> None:
    with serving(tmp_path, VOLO_DEVICE="cuda") as service:
        assert service.process.wait(PATIENCE_S) == 78
        (reason,) = service.said("cannot start")
        assert reason["reason"].startswith("The device cuda was asked for, but torch")
        assert not service.said("process ended")


def test_a_busy_port_is_a_clear_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        with serving(tmp_path, "service", "serve", "--port", port) as service:
            assert service.process.wait(PATIENCE_S) == 1
            (line,) = service.log
            assert line["url"] == f"http://127.0.0.1:{port}"
            assert line["reason"].startswith("Address already in use; choose another")
