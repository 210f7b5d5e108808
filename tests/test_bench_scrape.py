"""What the service says of itself between two readings."""

import pytest

from service.bench import scrape

BEFORE = """
# TYPE volo_batches_total counter
volo_batches_total 10.0
# TYPE volo_pictures_total counter
volo_pictures_total 30.0
# TYPE volo_stage_seconds histogram
volo_stage_seconds_bucket{le="0.1",stage="decode"} 1.0
volo_stage_seconds_sum{stage="decode"} 1.0
volo_stage_seconds_count{stage="decode"} 30.0
# TYPE volo_request_seconds histogram
volo_request_seconds_sum{endpoint="/predict"} 3.0
volo_request_seconds_sum{endpoint="/health/ready"} 77.0
# TYPE python_info gauge
python_info{version="3"} 1.0
"""
AFTER = """
# TYPE volo_batches_total counter
volo_batches_total 14.0
# TYPE volo_pictures_total counter
volo_pictures_total 50.0
# TYPE volo_stage_seconds histogram
volo_stage_seconds_sum{stage="decode"} 2.0
volo_stage_seconds_sum{stage="device"} 2.0
# TYPE volo_request_seconds histogram
volo_request_seconds_sum{endpoint="/predict"} 7.0
"""


def test_only_our_sums_and_counts_are_read() -> None:
    readings = scrape.parse(BEFORE)
    assert readings["volo_stage_seconds_sum", "decode"] == 1.0
    assert readings["volo_batches_total", ""] == 10.0
    assert all(name.startswith("volo_") and not name.endswith("_bucket") for name, _ in readings)


def test_the_mean_batch_is_that_of_the_runs_in_between() -> None:
    assert scrape.mean_batch(scrape.parse(BEFORE), scrape.parse(AFTER)) == 5.0


def test_stages_share_the_time_of_the_requests_in_between() -> None:
    shares = scrape.stage_shares(scrape.parse(BEFORE), scrape.parse(AFTER), "/predict")
    assert shares == pytest.approx({"decode": 0.25, "device": 0.5, "other": 0.25})


def test_a_server_that_is_not_ours_says_nothing() -> None:
    assert scrape.mean_batch({}, {}) is None
    assert scrape.stage_shares({}, {}, "/predict") == {}
    assert scrape.read("http://127.0.0.1:1") == {}
