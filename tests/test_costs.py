import pytest

from service.costs import Costs


@pytest.fixture
def costs() -> Costs:
    return Costs({4: 0.4, 1: 0.2, 2: 0.3}, weight=0.5)


def test_the_ladder_goes_up_whatever_order_it_was_measured_in(costs: Costs) -> None:
    assert costs.ladder == (1, 2, 4)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (4, 4)])
def test_a_run_is_padded_to_the_next_rung(costs: Costs, count: int, size: int) -> None:
    assert costs.padded_size(count) == size


def test_more_than_the_largest_rung_counts_as_the_largest(costs: Costs) -> None:
    assert costs.padded_size(99) == 4


def test_a_run_costs_what_its_padded_size_costs(costs: Costs) -> None:
    assert costs.seconds(3) == 0.4


def test_a_finished_run_moves_the_cost_of_its_rung_alone(costs: Costs) -> None:
    costs.learn(4, 0.6)
    assert [costs.seconds(size) for size in costs.ladder] == pytest.approx([0.2, 0.3, 0.5])


def test_one_hiccup_counts_as_no_more_than_a_run_twice_as_long(costs: Costs) -> None:
    costs.learn(4, 60.0)
    assert costs.seconds(4) == pytest.approx(0.6)


def test_a_device_that_stays_slow_is_known_for_it(costs: Costs) -> None:
    for _ in range(50):
        costs.learn(4, 3.0)
    assert costs.seconds(4) == pytest.approx(3.0)


def test_two_runs_are_made_where_they_cost_less_than_the_padding(costs: Costs) -> None:
    assert [costs.first_run(count) for count in (1, 2, 3, 4, 9)] == [1, 2, 3, 4, 4]
    steep = Costs({1: 0.1, 4: 0.4, 8: 0.8})
    assert [steep.first_run(count) for count in (2, 3, 5, 6, 7, 8)] == [1, 3, 4, 6, 7, 8]


@pytest.fixture
def unpadded() -> Costs:
    return Costs({1: 0.2, 4: 0.5, 8: 0.9}, weight=0.5, padded=False)


def test_without_padding_a_run_is_of_any_size_and_costs_what_lies_between_the_rungs(unpadded: Costs) -> None:
    assert [unpadded.padded_size(count) for count in (1, 3, 6, 9)] == [1, 3, 6, 8]
    assert [unpadded.seconds(count) for count in (1, 3, 6, 9)] == pytest.approx([0.2, 0.4, 0.7, 0.9])
    assert [unpadded.first_run(count) for count in (1, 3, 6, 9)] == [1, 3, 6, 8]


def test_without_padding_a_run_between_two_rungs_moves_both(unpadded: Costs) -> None:
    unpadded.learn(6, 1.05)
    assert [unpadded.seconds(size) for size in unpadded.ladder] == pytest.approx([0.2, 0.625, 1.125])


def test_a_size_that_is_no_rung_cannot_have_run(costs: Costs) -> None:
    with pytest.raises(KeyError):
        costs.learn(3, 0.1)


def test_after_running_out_of_memory_only_smaller_rungs_are_left(costs: Costs) -> None:
    costs.too_large(4)
    assert (costs.largest, costs.padded_size(4)) == (2, 2)


def test_the_smallest_rung_is_never_too_large(costs: Costs) -> None:
    costs.too_large(1)
    assert costs.ladder == (1,)


def test_a_run_that_was_under_way_when_its_rung_went_may_still_report(costs: Costs) -> None:
    costs.too_large(4)
    costs.learn(4, 0.4)


@pytest.mark.parametrize("seconds", [{}, {0: 0.1}, {1: 0.0}])
def test_a_ladder_without_positive_rungs_is_refused(seconds: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Costs(seconds)
