"""The highest rate that keeps a promise, looked for on servers that are formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bench.search import highest_rate


def test_the_rate_at_which_a_queue_waits_too_long_is_found() -> None:
    def mean_wait_s(rate: float) -> float:  # of a queue with random arrivals, 100 a second at most (M/M/1)
        return 1 / (100 - rate) if rate < 100 else float("inf")

    assert highest_rate(lambda rate: mean_wait_s(rate) < 0.1, first=100.0) == pytest.approx(90, rel=0.05)


@given(limit=st.floats(5, 5000), first=st.floats(50, 200))
def test_what_it_finds_holds_and_is_close_below_the_limit(limit: float, first: float) -> None:
    found = highest_rate(lambda rate: rate <= limit, first)
    assert limit * 0.95 <= found <= limit


@given(limit=st.floats(50, 5000), first=st.floats(50, 200), known=st.floats(0.1, 1.0))
def test_it_finds_no_lower_rate_than_is_known_to_hold(limit: float, first: float, known: float) -> None:
    found = highest_rate(lambda rate: rate <= limit, first, known=known * limit)
    assert max(known * limit, limit * 0.95) <= found <= limit


def test_a_server_that_keeps_no_promise_gets_no_rate_and_not_many_trials() -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return False

    assert highest_rate(holds, first=100.0) == 0
    assert len(tried) < 10
