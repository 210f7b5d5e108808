"""Whoever collects the spans gets them all, and whoever does not holds up nothing."""

import re
import signal
import socket
from pathlib import Path

from collecting import collecting
from running import PATIENCE_S, Service, serving, until


def stop(service: Service) -> int:
    service.process.send_signal(signal.SIGTERM)
    return service.process.wait(PATIENCE_S)


def test_a_collector_gets_the_spans_of_every_request_before_the_service_ends(tmp_path: Path) -> None:
    with collecting() as collector:
        never = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "VOLO_GRACE_S": "0"}  # they come at the end, or not at all
        settings = {"VOLO_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **never}
        with serving(tmp_path, VOLO_WORKERS="2", **settings) as service:
            until(service.is_ready)
            answers = [service.predict() for _ in range(4)]
            assert stop(service) == 0
            logged = {line["trace_id"] for line in service.said("request") if line["endpoint"] == "/predict"}
    assert collector.paths == {"/v1/traces"}
    assert collector.services == {"volo"}
    requests = {span.span_id.hex(): span.trace_id.hex() for span in collector.spans if span.name == "POST /predict"}
    assert set(requests.values()) == logged
    told = [re.findall(r'traceparent;desc="00-(\w+)-(\w+)-\w+"', each.headers["server-timing"]) for each in answers]
    assert told == [[(requests[span_id], span_id)] for ((_, span_id),) in told]
    stages = sorted((span.parent_span_id.hex(), span.name) for span in collector.spans if span.name != "POST /predict")
    of_each = ("receive", "decode", "queue", "device", "respond")
    assert stages == sorted((span_id, name) for span_id in requests for name in of_each)


def test_a_collector_that_never_answers_harms_no_request_and_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": "600", "OTEL_BSP_SCHEDULE_DELAY": "1"}
        settings = {"VOLO_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url, **patient}
        with serving(tmp_path, VOLO_GRACE_S="0", **settings) as service:
            until(service.is_ready)
            assert [service.predict().status_code for _ in range(3)] == [200] * 3
            silent.accept()[0].close()  # it has been tried
            assert stop(service) == 0
            assert not service.said("process did not end when asked")
