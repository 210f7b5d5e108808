"""Finds the highest rate that still holds what was promised."""

from __future__ import annotations

from collections.abc import Callable

_GROWTH = 1.5
_HOPELESS = 1 / 64
"""Of the first rate tried: below it the search gives up."""


def highest_rate(holds: Callable[[float], bool], first: float, within: float = 0.05, known: float = 0.0) -> float:
    """The highest rate found to hold, by bisection; the true one is at most a share of ``within`` higher.

    Args:
        holds: tries a rate. What holds at one rate is taken to hold at all below.
        first: a rate that is probably a little too high; if it is not, higher ones are tried.
        known: a rate that is known to hold.

    Returns:
        The rate, at least the one that is known; 0 if not even a hopelessly low one holds.
    """
    low, high = known, max(known, first)
    while holds(high):
        low, high = high, high * _GROWTH
    while high - low > within * high and high > first * _HOPELESS:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
