"""Whole days in a moment: more callers than a device can serve."""

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from simulating import RATE, SECONDS, Caller, Simulation

from service.batching import BACKGROUND_SHARE, Queue
from service.costs import Costs

# Under load


def crowd(size: int, load: float, patience_s: float, seed: int = 1) -> Iterator[Caller]:
    """Callers at `load` times what the device can serve; every tenth who is refused comes back when told."""
    chance, at_s = random.Random(seed), 0.0
    for number in range(size):
        at_s += chance.expovariate(load * RATE)
        yield Caller(at_s, patience_s, comes_back=number % 10 == 0)


def unsteady_device(seed: int = 2) -> Callable[[int], float]:
    chance = random.Random(seed)
    return lambda size: SECONDS[size] * chance.uniform(0.9, 1.1)


@pytest.mark.parametrize(("limit", "patience_s"), [(1000, 6.0), (32, 30.0)], ids=["deadline", "queue_full"])
def test_at_one_and_a_half_times_its_capacity_a_device_does_useful_work_all_the_time(
    limit: int, patience_s: float
) -> None:
    simulation = Simulation(Queue(limit, Costs(SECONDS)), unsteady_device()).play(crowd(20_000, 1.5, patience_s))
    total = Counter(outcome for outcomes in simulation.outcomes.values() for outcome in outcomes)
    assert total["done"] > 0.9 * RATE * simulation.now
    assert total["late"] + total["expired"] < 0.1 * total["done"]


@pytest.mark.parametrize(("limit", "patience_s"), [(1000, 6.0), (32, 30.0)], ids=["deadline", "queue_full"])
def test_who_comes_back_when_told_to_is_let_in_more_often_than_not(limit: int, patience_s: float) -> None:
    outcomes = Simulation(Queue(limit, Costs(SECONDS)), unsteady_device()).play(crowd(5_000, 1.5, patience_s)).outcomes
    second_tries = [outcome[0] for key, outcome in outcomes.items() if isinstance(key, tuple)]
    assert len(second_tries) > 100
    assert second_tries.count("refused") < 0.5 * len(second_tries)


def test_below_its_capacity_nobody_is_refused_or_late() -> None:
    simulation = Simulation(Queue(100, Costs(SECONDS)), unsteady_device()).play(crowd(5_000, 0.8, 8.0))
    assert {outcome for outcomes in simulation.outcomes.values() for outcome in outcomes} == {"done"}


def all_sorts(size: int, load: float, seed: int = 3) -> Iterator[Caller]:
    """Callers with much patience or little, some in the background; some leave, one in a thousand makes runs raise."""
    chance, at_s = random.Random(seed), 0.0
    for _ in range(size):
        at_s += chance.expovariate(load * RATE)
        background = chance.random() < 0.1
        yield Caller(
            at_s,
            patience_s=300.0 if background else chance.uniform(0.5, 12.0),
            leaves_after_s=chance.uniform(0.0, 5.0) if chance.random() < 0.1 else None,
            broken=chance.random() < 0.001,
            comes_back=chance.random() < 0.1,
            background=background,
        )


def test_of_a_hundred_thousand_callers_each_has_one_outcome_and_most_of_the_device_is_of_use() -> None:
    callers = list(all_sorts(100_000, 1.5))
    simulation = Simulation(Queue(1000, Costs(SECONDS)), unsteady_device()).play(callers)
    assert all(len(simulation.outcomes[key]) == 1 for key in range(len(callers)))
    total = Counter((caller.background, simulation.outcomes[key][0]) for key, caller in enumerate(callers))
    assert total[False, "done"] > 0.85 * RATE * simulation.now
    assert total[False, "late"] + total[False, "expired"] < 0.1 * total[False, "done"]
    # of which it gets most one by one, because none of them may hold up the others for long
    assert total[True, "done"] > 0.9 * BACKGROUND_SHARE * simulation.now / (1 + BACKGROUND_SHARE) / SECONDS[1]
    assert simulation.most_owed_s <= 1.1 * (SECONDS[1] + BACKGROUND_SHARE * SECONDS[8])  # an unsteady device's second
    assert not simulation.idled_with_work


def test_under_load_the_background_costs_others_its_share_and_no_more() -> None:
    others = list(crowd(10_000, 1.5, 6.0))
    behind = [Caller(0.0, 1e6, background=True) for _ in range(2000)]
    alone, beside = (
        Simulation(Queue(2000, Costs(SECONDS)), unsteady_device()).play([*others, *more]) for more in ([], behind)
    )
    answered = [sum(run.outcomes[key] == ["done"] for key in range(len(others))) for run in (alone, beside)]
    assert answered[1] > (1 - BACKGROUND_SHARE) * 0.98 * answered[0]
