"""Figures from every single request."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bench.crew import Closed, Open
from service.bench.figures import ServerFigures, draw
from service.bench.samples import Samples, merge, percentile


def samples(rows: list[tuple[float, float, str]], cpu_s: float = 0.0, lag_s: float = 0.0) -> Samples:
    """Of rows of due, done and kind."""
    names = ("ok", *sorted({kind for _, _, kind in rows} - {"ok"}))
    due_s, done_s = (np.array([row[place] for row in rows], np.float64) for place in (0, 1))
    kinds = np.array([names.index(kind) for _, _, kind in rows], np.int64)
    return Samples(due_s, due_s + lag_s, done_s, kinds, names, cpu_s)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = np.arange(1.0, 101.0)
    assert [percentile(values, percent) for percent in (50, 90, 99, 99.9, 100)] == [50, 90, 99, 100, 100]


def test_nothing_has_no_percentile() -> None:
    assert np.isnan(percentile(np.array([]), 99))


@given(st.lists(st.lists(st.tuples(st.floats(-1, 9), st.sampled_from(["ok", "503", "timeout"])))))
def test_generators_merged_give_the_figures_of_one_that_did_it_all(parts: list[list[tuple[float, str]]]) -> None:
    rows = [[(due_s, due_s + 0.5, kind) for due_s, kind in part] for part in parts]
    merged = merge([samples([]), *(samples(part) for part in rows)])
    whole = samples([row for part in rows for row in part])
    assert merged.errors() == whole.errors()
    assert merged.answered(9.0) == whole.answered(9.0)
    assert merged.latencies_s().tolist() == whole.latencies_s().tolist()


def test_latencies_are_those_of_good_answers_to_requests_due_in_the_window() -> None:
    taken = samples([(-0.5, 0.5, "ok"), (0.5, 2.5, "ok"), (1.0, 1.5, "503")])
    assert taken.latencies_s().tolist() == [2.0]
    assert taken.errors() == {"503": 1}


def test_answers_are_counted_when_they_come() -> None:
    taken = samples([(-3.0, -2.0, "ok"), (-0.5, 0.5, "ok"), (0.5, 2.5, "ok"), (0.9, 1.0, "ok")])
    assert taken.answered(2.0) == 2


def test_the_commonest_error_comes_first() -> None:
    taken = samples([(0, 1, "timeout"), (0, 1, "503"), (0, 1, "503")])
    assert list(taken.errors().items()) == [("503", 2), ("timeout", 1)]


def test_a_step_s_figures_tell_what_was_offered_and_what_came_back() -> None:
    taken = samples([(second / 10, second / 10 + 0.05, "ok") for second in range(100)], cpu_s=2.5)
    figures = draw(taken, Open(10.0), 10.0, 1, ServerFigures())
    assert (figures.title, figures.offered, figures.answered) == ("10 a second", 10.0, 10.0)
    assert figures.p50_ms == pytest.approx(50.0)
    assert figures.generator_cores == 0.25
    assert figures.doubt == ""


def test_a_generator_that_was_busy_or_late_is_doubted() -> None:
    rows = [(float(second), second + 0.05, "ok") for second in range(10)]
    busy = draw(samples(rows, cpu_s=19.0), Closed(1), 10.0, 2, ServerFigures())
    late = draw(samples(rows, lag_s=0.02), Closed(1), 10.0, 2, ServerFigures())
    assert busy.doubt == "1.9 cores for 2 processes"
    assert late.doubt == "it sent requests 20.0 ms late (p99)"
