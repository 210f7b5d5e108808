"""When requests come: at random, or at random and in bursts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.bench.loops import arrivals

Times = NDArray[np.float64]
"""Seconds, in order."""


class Arrivals(Protocol):
    """A way of coming, at any mean rate."""

    @property
    def name(self) -> str: ...

    @property
    def peak(self) -> float:
        """How many times the mean rate they come at when they come fastest."""

    def times(self, rate: float, seconds: float, seed: int) -> Times:
        """When the requests of so many seconds come, ``rate`` a second on average."""


@dataclass(frozen=True)
class Poisson:
    """Requests that know nothing of each other."""

    name: str = "Poisson"
    peak: float = 1.0

    def times(self, rate: float, seconds: float, seed: int) -> Times:
        """Of a Poisson process."""
        return arrivals(rate, seconds, seed)


@dataclass(frozen=True)
class Bursty:
    """A Markov-modulated Poisson process of two states: bursts of ``factor`` times the mean rate, and calm between.

    Bursts take ``share`` of the time and ``burst_s`` each, on average; how long they and calms take is exponentially
    distributed. (Fischer and Meier-Hellstern, The Markov-modulated Poisson process cookbook, 1993.)
    """

    factor: float = 3.0
    share: float = 0.1
    burst_s: float = 0.5
    name: str = "bursty"

    def __post_init__(self) -> None:
        """Raise ValueError if the bursts alone would be more than there is."""
        if not 0 < self.share < 1 <= self.factor <= 1 / self.share:
            raise ValueError(f"bursts of {self.factor:g} times the mean rate cannot take {self.share:.0%} of the time")

    @property
    def peak(self) -> float:
        """In a burst."""
        return self.factor

    def times(self, rate: float, seconds: float, seed: int) -> Times:
        """Of the process; with just as many bursts as are expected, at least one, and just their share of the time.

        Left to chance, some seconds would have no burst, and the mean rate would not be what was asked for.
        """
        random = np.random.default_rng(seed)
        bursts = max(1, round(seconds * self.share / self.burst_s))
        calm_s, burst_s = (random.exponential(size=bursts) for _ in range(2))
        calm_s *= (1 - self.share) * seconds / calm_s.sum()
        burst_s *= self.share * seconds / burst_s.sum()
        ends_s = np.stack([calm_s, burst_s], axis=1).cumsum()
        calm_rate = rate * (1 - self.share * self.factor) / (1 - self.share)
        expected = np.stack([calm_rate * calm_s, self.factor * rate * burst_s], axis=1).cumsum()
        # a Poisson process of rate 1, on a clock that goes as fast as requests come
        steady = arrivals(1.0, expected[-1], int(random.integers(2**32)))
        times: Times = np.interp(steady, [0.0, *expected], [0.0, *ends_s])
        return times
