import math
from collections.abc import Hashable, Iterable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.batching import Batch, Queue, halves
from service.costs import Costs
from service.line import Job

SECONDS = {1: 0.5, 2: 0.6, 4: 0.8, 8: 1.2}


def queue(limit: int = 100, lanes: int = 1, ahead: int = 0, seconds: dict[int, float] = SECONDS) -> Queue:
    return Queue(limit, Costs(seconds), lanes, ahead, caution=0.0)


def let_in(line: Queue, deadlines: Iterable[float], now: float = 0.0) -> None:
    """Submit one job for each deadline; its key is the place in which it was submitted."""
    for key, deadline_s in enumerate(deadlines):
        assert line.submit(Job(key, now, deadline_s), now) is None


def keys(batch: Batch | None) -> list[Hashable]:
    return [job.key for job in batch.jobs] if batch else []


# The door


def test_a_job_that_can_be_met_is_let_in() -> None:
    assert queue().submit(Job("a", 0.0, 10.0), now=0.0) is None


def test_a_full_queue_refuses_at_once() -> None:
    line = queue(limit=1)
    let_in(line, [10])
    refusal = line.submit(Job("b", 0.0, 10.0), now=0.0)
    assert refusal is not None
    assert (refusal.reason, line.depth) == ("queue_full", 1)


def test_a_deadline_closer_than_a_lone_run_is_refused() -> None:
    refusal = queue().submit(Job("a", 0.0, 0.4), now=0.0)
    assert refusal is not None
    assert refusal.reason == "deadline"


def test_a_deadline_that_is_met_to_the_instant_is_let_in() -> None:
    assert queue().submit(Job("a", 0.0, 0.5), now=0.0) is None


def test_the_run_under_way_is_waited_for() -> None:
    line = queue()
    let_in(line, [10] * 8)
    line.take(0.0)  # until 1.2, and a lone run after it until 1.7
    assert line.submit(Job("late", 0.0, 1.6), now=0.0) is not None
    assert line.submit(Job("met", 0.0, 1.8), now=0.0) is None


def test_a_free_lane_is_not_waited_for() -> None:
    line = queue(lanes=2)
    let_in(line, [10] * 8)
    line.take(0.0)
    assert line.submit(Job("met", 0.0, 0.5), now=0.0) is None


def test_each_run_ahead_is_expected_on_the_lane_that_is_free_first() -> None:
    line = queue(lanes=2)
    let_in(line, [10])
    assert len(keys(line.take(0.0))) == 1
    let_in(line, [10] * 8)
    assert len(keys(line.take(0.0))) == 8
    let_in(line, [2] * 8)  # from 0.5 on the lane of the lone run; the next from 1.2 on the other, until 2.4
    assert line.submit(Job("late", 0.0, 2.3), now=0.0) is not None
    assert line.submit(Job("met", 0.0, 2.5), now=0.0) is None


def test_a_run_that_overruns_is_expected_any_moment() -> None:
    line = queue()
    let_in(line, [100])
    line.take(0.0)
    assert line.submit(Job("late", 50.0, 50.4), now=50.0) is not None
    assert line.submit(Job("met", 50.0, 50.5), now=50.0) is None


def test_only_earlier_deadlines_are_ahead() -> None:
    line = queue()
    let_in(line, [100] * 24)
    assert line.submit(Job("urgent", 0.0, 1.3), now=0.0) is None


def test_nobody_is_let_in_who_makes_another_late() -> None:
    line = queue()
    let_in(line, [1.5] * 8)
    assert line.submit(Job("urgent", 0.0, 1.4), now=0.0) is not None


def test_a_key_that_already_waits_is_a_programming_error() -> None:
    line = queue()
    let_in(line, [10])
    with pytest.raises(ValueError, match="already waiting"):
        line.submit(Job(0, 0.0, 10.0), now=0.0)


def test_a_key_may_come_again_when_its_job_runs() -> None:
    line = queue()
    let_in(line, [10])
    line.take(0.0)
    assert line.submit(Job(0, 0.0, 10.0), now=0.0) is None


def test_a_full_queue_asks_to_come_back_just_after_the_next_run_starts() -> None:
    line = queue(limit=1)
    let_in(line, [10])
    line.take(0.0)  # a lone run, until 0.5
    let_in(line, [10])
    refusal = line.submit(Job("b", 0.0, 10.0), now=0.0)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(0.5 + 0.5)


def test_who_would_be_late_is_asked_to_come_back_when_the_last_in_line_is_met() -> None:
    line = queue()
    let_in(line, [20] * 16)
    line.take(0.0)  # until 1.2, those who wait until 2.4, and whoever comes after them until 3.6
    refusal = line.submit(Job("late", 0.0, 2.0), now=0.0)
    assert refusal is not None
    assert refusal.reason == "deadline"
    assert refusal.retry_after_s == pytest.approx((3.6 - 2.0) + 0.5)


# The line


def test_an_idle_device_takes_a_lone_job_at_once() -> None:
    line = queue()
    let_in(line, [10])
    assert keys(line.take(0.0)) == [0]


def test_nothing_waiting_is_nothing_to_run() -> None:
    assert queue().take(0.0) is None


def test_what_came_during_a_run_is_the_next_batch() -> None:
    line = queue()
    let_in(line, [10])
    first = line.take(0.0)
    assert first is not None
    let_in(line, [10] * 3, now=0.1)
    line.finished(first, 0.5)
    second = line.take(0.5)
    assert second is not None
    assert (keys(second), second.padded_size) == ([0, 1, 2], 4)


def test_the_earliest_deadline_goes_first() -> None:
    line = queue()
    let_in(line, [30, 10, 20])
    assert keys(line.take(0.0)) == [1, 2, 0]


def test_of_equal_deadlines_the_earlier_arrival_goes_first() -> None:
    line = queue()
    line.submit(Job("second", 0.2, 10.0), now=0.3)
    line.submit(Job("first", 0.1, 10.0), now=0.3)
    assert keys(line.take(0.3)) == ["first", "second"]


def test_of_equal_deadlines_and_arrivals_the_first_submitted_goes_first() -> None:
    line = queue()
    let_in(line, [10] * 5)
    assert keys(line.take(0.0)) == [0, 1, 2, 3, 4]


def test_a_batch_is_never_above_the_largest_rung() -> None:
    line = queue()
    let_in(line, [10] * 9)
    assert len(keys(line.take(0.0))) == 8


def test_a_batch_is_never_above_what_memory_allows() -> None:
    line = queue()
    let_in(line, [10] * 8)
    line.costs.too_large(8)
    assert len(keys(line.take(0.0))) == 4


def test_no_more_runs_are_started_than_there_are_lanes() -> None:
    line = queue(lanes=2)
    let_in(line, [10] * 24)
    batches = [line.take(0.0) for _ in range(3)]
    assert [len(keys(batch)) for batch in batches] == [8, 8, 0]


def test_idle_lanes_share_what_waits() -> None:
    line = queue(lanes=3)
    let_in(line, [10] * 7)
    assert [keys(line.take(0.0)) for _ in range(4)] == [[0, 1, 2], [3, 4], [5, 6], []]


def test_padding_is_avoided_where_two_runs_cost_less() -> None:
    line = queue(seconds={1: 0.1, 4: 0.4, 8: 0.8})
    let_in(line, [10] * 5)
    assert len(keys(line.take(0.0))) == 4


def test_a_run_is_alone_when_it_has_every_lane_to_itself() -> None:
    line = queue(lanes=2)
    batches = []
    for jobs in (1, 1, 0):
        let_in(line, [10] * jobs)
        batches.append(line.take(0.0))
    assert [batch and batch.alone for batch in batches] == [True, False, None]


def test_with_one_lane_there_is_nothing_to_have_to_oneself() -> None:
    line = queue()
    let_in(line, [10])
    batch = line.take(0.0)
    assert batch is not None
    assert not batch.alone


def test_what_a_run_took_alone_is_not_what_it_costs_beside_others() -> None:
    line = queue(lanes=2)
    let_in(line, [10])
    batch = line.take(0.0)
    assert batch is not None
    line.finished(batch, 0.1)
    assert line.costs.seconds(1) == SECONDS[1]


def test_a_full_run_is_handed_over_ahead_and_anything_less_waits() -> None:
    line = queue(ahead=1)
    let_in(line, [10])
    assert len(keys(line.take(0.0))) == 1
    let_in(line, [20] * 7)
    assert line.take(0.0) is None
    line.submit(Job("the eighth", 0.0, 20.0), now=0.0)
    assert len(keys(line.take(0.0))) == 8
    let_in(line, [20] * 8)
    assert line.take(0.0) is None


def test_a_run_ahead_starts_when_the_one_before_it_ends() -> None:
    line = queue(ahead=1)
    let_in(line, [10])
    line.take(0.0)  # until 0.5
    let_in(line, [1.6, *[20] * 8])
    assert keys(line.take(0.0)) == [0, 1, 2, 3]  # until 1.3: of eight, until 1.7, it would be late for the first
    assert line.predicted_wait_s(0.0) == pytest.approx(1.3)


def test_a_cancelled_job_never_runs() -> None:
    line = queue()
    let_in(line, [10] * 3)
    assert line.cancel(1)
    assert keys(line.take(0.0)) == [0, 2]


def test_a_cancelled_job_makes_room() -> None:
    line = queue(limit=1)
    let_in(line, [10])
    line.cancel(0)
    assert line.submit(Job(0, 0.0, 10.0), now=0.0) is None


def test_only_what_waits_can_be_cancelled() -> None:
    line = queue()
    let_in(line, [10])
    line.take(0.0)
    assert not line.cancel(0)
    assert not line.cancel("never seen")


def test_a_job_that_cannot_be_met_any_more_expires() -> None:
    line = queue()
    let_in(line, [1, 10])
    assert [job.key for job in line.expire(0.6)] == [0]
    assert keys(line.take(0.6)) == [1]


def test_a_job_that_cannot_be_met_any_more_is_not_run_even_before_it_is_told_so() -> None:
    line = queue()
    let_in(line, [1, 10])
    assert keys(line.take(0.6)) == [1]
    assert line.depth == 1


def test_a_batch_is_no_larger_than_its_first_deadline_can_bear() -> None:
    line = queue()
    let_in(line, [10] * 6)
    line.submit(Job("urgent", 0.0, 0.7), now=0.0)
    assert keys(line.take(0.0)) == ["urgent", 0]


def test_a_deadline_is_passed_over_when_to_save_it_would_cost_more_others_theirs() -> None:
    line = queue()
    let_in(line, [1.2, *[1.3] * 7])
    assert keys(line.take(0.05)) == [1, 2, 3, 4, 5, 6, 7]


# The runs


def test_a_finished_run_frees_its_lane_and_teaches_its_cost() -> None:
    line = queue()
    let_in(line, [10] * 2)
    batch = line.take(0.0)
    assert batch is not None
    line.finished(batch, 0.7)
    assert line.in_run == 0
    assert line.costs.seconds(2) == pytest.approx(0.61)


def test_a_run_that_raised_teaches_nothing() -> None:
    line = queue()
    let_in(line, [10])
    batch = line.take(0.0)
    assert batch is not None
    line.finished(batch, None)
    assert line.costs.seconds(1) == 0.5


def test_a_run_cannot_finish_twice() -> None:
    line = queue()
    let_in(line, [10])
    batch = line.take(0.0)
    assert batch is not None
    line.finished(batch, 0.5)
    with pytest.raises(KeyError):
        line.finished(batch, 0.5)


def test_the_queue_knows_how_many_wait_and_how_many_run() -> None:
    line = queue(lanes=2)
    let_in(line, [10] * 11)
    line.take(0.0)
    assert (line.depth, line.in_run) == (5, 6)


def test_the_predicted_wait_is_for_the_run_under_way_and_full_runs_after_it() -> None:
    line = queue()
    assert line.predicted_wait_s(0.0) == 0.0
    let_in(line, [10] * 8)
    line.take(0.0)
    let_in(line, [10] * 11)
    assert line.predicted_wait_s(0.2) == pytest.approx(1.0 + 1.2)


@given(st.integers(1, 64))
def test_halves_leave_nobody_out_and_end_with_one_alone(size: int) -> None:
    jobs = tuple(Job(key, 0.0, 1.0) for key in range(size))
    first, second = halves(jobs)
    assert first + second == jobs
    assert 0 <= len(first) - len(second) <= 1


# Against a model too simple to be wrong: deadlines far away, a plain list


class QueueMachine(RuleBasedStateMachine):
    LIMIT, LANES, AHEAD = 12, 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.queue = queue(self.LIMIT, self.LANES, self.AHEAD)
        self.model: list[Job] = []
        self.batches: list[Batch] = []
        self.new_keys = count()

    @rule(patience=st.integers(1000, 1003), arrival=st.integers(0, 3))
    def submit(self, patience: int, arrival: int) -> None:
        job = Job(next(self.new_keys), arrival, arrival + patience)
        refusal = self.queue.submit(job, now=3.0)
        assert (refusal is not None) == (len(self.model) == self.LIMIT)
        if refusal is None:
            self.model = sorted([*self.model, job], key=lambda job: (job.deadline_s, job.arrival_s))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, 30))
        assert self.queue.cancel(key) == any(job.key == key for job in self.model)
        self.model = [job for job in self.model if job.key != key]

    @rule()
    def take(self) -> None:
        batch = self.queue.take(now=3.0)
        idle = self.LANES - len(self.batches)
        if idle > 0:
            share = math.ceil(len(self.model) / idle)
        else:
            share = 8 if idle > -self.AHEAD and len(self.model) >= 8 else 0
        expected = self.model[: min(share, 8)]
        assert keys(batch) == [job.key for job in expected]
        self.model = self.model[len(expected) :]
        self.batches += [batch] if batch else []

    @precondition(lambda self: self.batches)
    @rule(seconds=st.sampled_from([None, 0.5, 2.0]))
    def finish(self, seconds: float | None) -> None:
        self.queue.finished(self.batches.pop(), seconds)

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.depth == len(self.model)
        assert self.queue.in_run == sum(len(batch.jobs) for batch in self.batches)


TestQueueAgainstAList = QueueMachine.TestCase
TestQueueAgainstAList.settings = settings(deadline=None, derandomize=True, max_examples=60, stateful_step_count=40)


# In the background


def behind(line: Queue, count: int) -> None:
    """Submit jobs in the background; their keys are b0, b1 and so on."""
    for number in range(count):
        assert line.submit(Job(f"b{number}", 0.0, 100.0, background=True), 0.0) is None


def test_the_background_waits_for_those_who_wait_for_an_answer() -> None:
    line = queue()
    behind(line, 3)
    let_in(line, [10, 10])
    first = line.take(0.0)
    assert keys(first) == [0, 1]
    assert line.take(0.0) is None
    assert first is not None
    line.finished(first, 0.6)
    assert keys(line.take(0.6)) == ["b0"]


def test_the_background_fills_places_that_would_be_empty() -> None:
    line = queue()
    behind(line, 3)
    let_in(line, [10, 10, 10])
    assert keys(line.take(0.0)) == [0, 1, 2, "b0"]


def test_a_run_in_the_background_is_over_soon() -> None:
    line = queue(seconds={1: 0.004, 2: 0.008, 4: 0.016, 8: 0.032})
    behind(line, 8)
    assert keys(line.take(0.0)) == ["b0", "b1", "b2", "b3"]


def test_where_even_one_takes_long_the_background_runs_one_by_one() -> None:
    line = queue()
    behind(line, 8)
    assert keys(line.take(0.0)) == ["b0"]


def test_of_several_lanes_the_background_leaves_one_free() -> None:
    line = queue(lanes=3)
    behind(line, 5)
    assert keys(line.take(0.0)) == ["b0"]
    assert keys(line.take(0.0)) == ["b1"]
    assert line.take(0.0) is None
    let_in(line, [10])
    assert keys(line.take(0.0)) == [0]


def test_a_run_in_the_background_never_has_all_lanes_to_itself() -> None:
    line = queue(lanes=2)
    behind(line, 1)
    batch = line.take(0.0)
    assert keys(batch) == ["b0"]
    assert batch is not None
    assert not batch.alone


def full_runs(line: Queue, count: int) -> None:
    """Have so many full runs done, beside which eight more always wait."""
    for _ in range(count):
        for _ in range(16 - line.depth):
            assert line.submit(Job(object(), 0.0, 1000.0), 0.0) is None
        batch = line.take(0.0)
        assert batch is not None
        assert [job.background for job in batch.jobs] == [False] * 8
        line.finished(batch, SECONDS[8])


def test_the_background_has_a_run_whenever_its_share_pays_for_one() -> None:
    line = queue()
    behind(line, 3)
    full_runs(line, 9)  # 10.8 s, of which a twentieth is more than the 0.5 s of a run
    batch = line.take(0.0)
    assert keys(batch) == ["b0"]
    assert batch is not None
    line.finished(batch, SECONDS[1])
    full_runs(line, 8)  # there were 0.04 s left over
    assert keys(line.take(0.0)) == ["b1"]


def test_the_background_is_owed_nothing_from_before_it_waited() -> None:
    line = queue()
    full_runs(line, 20)
    behind(line, 1)
    full_runs(line, 8)


def test_what_the_background_finds_room_for_counts_for_its_share() -> None:
    line = queue()
    behind(line, 5)
    full_runs(line, 7)
    for waiting in (8, 7):
        let_in(line, [1000] * (waiting - line.depth))
        batch = line.take(0.0)
        assert batch is not None
        line.finished(batch, SECONDS[8])
    assert keys(batch)[-1] == "b0"
    full_runs(line, 2)  # it was owed 0.48 s, and has got an eighth of 1.2 s


def test_the_door_reckons_with_the_share_of_the_background() -> None:
    line = queue(limit=200)
    let_in(line, [1000] * 80)
    assert line.predicted_wait_s(0.0) == pytest.approx(10 * 1.2)
    behind(line, 1)
    assert line.predicted_wait_s(0.0) == pytest.approx(10 * 1.2 + 0.5)


def test_a_job_in_the_background_is_not_run_where_it_would_be_late() -> None:
    line = queue()
    assert line.submit(Job("in time", 0.0, 10.0, background=True), 0.0) is None
    assert line.submit(Job("late", 0.0, 0.7, background=True), 0.0) is None
    let_in(line, [10] * 3)
    assert keys(line.take(0.0)) == [0, 1, 2, "in time"]


def test_the_background_takes_nobodys_place_in_the_line() -> None:
    line = queue(limit=2)
    behind(line, 2)
    refusal = line.submit(Job("b2", 0.0, 100.0, background=True), 0.0)
    assert refusal is not None
    assert refusal.reason == "queue_full"
    let_in(line, [10, 10])
    assert (line.depth, line.background_depth) == (2, 2)


def test_jobs_in_the_background_can_be_cancelled_and_expire() -> None:
    line = queue()
    behind(line, 3)
    assert line.cancel("b1")
    assert not line.cancel("b1")
    assert [job.key for job in line.expire(99.6)] == ["b0", "b2"]
    assert line.background_depth == 0


def test_a_key_waits_in_one_line_only() -> None:
    line = queue()
    behind(line, 1)
    with pytest.raises(ValueError, match="already waiting"):
        line.submit(Job("b0", 0.0, 10.0), 0.0)
