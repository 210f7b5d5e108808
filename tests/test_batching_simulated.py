"""Whole days in a moment: more callers than a device can serve."""

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from simulating import RATE, SECONDS, Caller, Simulation

from service.batching import Queue
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
    """Callers of all sorts, those in the background among them: one in ten leaves, one in fifty has a bad picture."""
    chance, at_s = random.Random(seed), 0.0
    for _ in range(size):
        at_s += chance.expovariate(load * RATE)
        background = chance.random() < 0.1
        yield Caller(
            at_s,
            patience_s=300.0 if background else chance.uniform(0.5, 12.0),
            leaves_after_s=chance.uniform(0.0, 5.0) if chance.random() < 0.1 else None,
            broken=chance.random() < 0.02,
            comes_back=chance.random() < 0.1,
            background=background,
        )


@pytest.mark.parametrize("ahead", [0, 1])
def test_of_a_hundred_thousand_callers_each_has_one_outcome_and_the_device_no_idle_moment(ahead: int) -> None:
    callers = list(all_sorts(100_000, 1.5))
    simulation = Simulation(Queue(1000, Costs(SECONDS), ahead=ahead), unsteady_device()).play(callers)
    outcomes = simulation.outcomes
    for kind in (False, True):
        print(kind, Counter(outcomes[k][0] for k, c in enumerate(callers) if c.background is kind))
    print(simulation.now, RATE*simulation.now, simulation.most_owed_s, simulation.idled_with_work, callers[-1].at_s)
