"""What a run costs: seconds on the device for each batch size it has a program for."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping


class Costs:
    """The measured seconds of a run for each rung of the batch-size ladder.

    `seconds` holds the warm-up's measurement of every rung; each finished run then moves its rung's figure by
    `weight` of the difference (an exponentially weighted average). A `padded` run is of the size of a rung, because
    only for these there are programs. Otherwise it is of any size up to the largest, and what it costs lies between
    the rungs around it.
    """

    def __init__(self, seconds: Mapping[int, float], weight: float = 0.1, *, padded: bool = True) -> None:
        """Raise ValueError if there is no rung, or one without a positive size and cost."""
        if not seconds or any(size < 1 or cost <= 0 for size, cost in seconds.items()):
            raise ValueError(f"every rung needs a positive size and cost: {dict(seconds)}")
        self.ladder = tuple(sorted(seconds))
        self._seconds = dict(sorted(seconds.items()))
        self._weight = weight
        self._padded = padded

    @property
    def largest(self) -> int:
        """The most pictures that one run may hold."""
        return self.ladder[-1]

    def padded_size(self, count: int) -> int:
        """The smallest run that holds `count` pictures; the largest one if none does."""
        if not self._padded:
            return min(count, self.largest)
        return self.ladder[min(bisect_left(self.ladder, count), len(self.ladder) - 1)]

    def first_run(self, count: int) -> int:
        """How many of `count` waiting pictures to run now: all that fit, or fewer where two runs beat the padding."""
        count = min(count, self.largest)
        rung_below = self.ladder[bisect_right(self.ladder, count) - 1]
        in_two_s = self.seconds(rung_below) + self.seconds(count - rung_below)
        return rung_below if rung_below < count < self.padded_size(count) and in_two_s < self.seconds(count) else count

    def seconds(self, count: int) -> float:
        """Seconds of the run that holds `count` pictures, padding included."""
        return self._at(self.padded_size(count))

    def learn(self, size: int, seconds: float) -> None:
        """Take in that a run of `size` took `seconds`. Raise KeyError for a size that no run has."""
        # One hiccup is not a trend: taken at its word, a pause of a minute would have everybody refused, and
        # with nobody let in no run would ever correct it.
        drift = min(seconds / self._at(size), 2) - 1
        for rung in set(self._around(size)):
            self._seconds[rung] *= 1 + self._weight * drift

    def too_large(self, size: int) -> None:
        """Remember that the device has no memory for a run of `size`: only smaller rungs from now on.

        The smallest rung stays whatever happens: a device that cannot run it has nothing left to try.
        """
        self.ladder = tuple(rung for rung in self.ladder if rung < size) or self.ladder[:1]

    def _at(self, size: int) -> float:
        below, above = self._around(size)
        share = (size - below) / (above - below) if above > below else 0.0
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])

    def _around(self, size: int) -> tuple[int, int]:
        """The rungs between which a size lies, those that became too large included; twice the same if it is one."""
        if size in self._seconds:
            return size, size
        if self._padded:
            raise KeyError(size)
        rungs = list(self._seconds)
        place = bisect_left(rungs, size)
        return rungs[max(place - 1, 0)], rungs[min(place, len(rungs) - 1)]
