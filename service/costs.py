"""What a run costs: seconds on the device for each batch size it has a program for."""

from bisect import bisect_left
from collections.abc import Mapping


class Costs:
    """The measured seconds of a run for each rung of the batch-size ladder.

    `seconds` holds the warm-up's measurement of every rung; each finished run then moves its rung's figure by
    `weight` of the difference (an exponentially weighted average).
    """

    def __init__(self, seconds: Mapping[int, float], weight: float = 0.1) -> None:
        """Raise ValueError if there is no rung, or one without a positive size and cost."""
        if not seconds or any(size < 1 or cost <= 0 for size, cost in seconds.items()):
            raise ValueError(f"every rung needs a positive size and cost: {dict(seconds)}")
        self.ladder = tuple(sorted(seconds))
        self._seconds = dict(seconds)
        self._weight = weight

    @property
    def largest(self) -> int:
        """The most pictures that one run may hold."""
        return self.ladder[-1]

    def padded_size(self, count: int) -> int:
        """The smallest rung that holds `count` pictures; the largest one if none does."""
        return self.ladder[min(bisect_left(self.ladder, count), len(self.ladder) - 1)]

    def seconds(self, count: int) -> float:
        """Seconds of the run that holds `count` pictures, padding included."""
        return self._seconds[self.padded_size(count)]

    def learn(self, size: int, seconds: float) -> None:
        """Take in that a run of the rung `size` took `seconds`. Raise KeyError for a size that is no rung."""
        known = self._seconds[size]
        # One hiccup is not a trend: taken at its word, a pause of a minute would have everybody refused, and
        # with nobody let in no run would ever correct it.
        self._seconds[size] = known + self._weight * (min(seconds, 2 * known) - known)

    def too_large(self, size: int) -> None:
        """Remember that the device has no memory for a run of `size`: only smaller rungs from now on.

        The smallest rung stays whatever happens: a device that cannot run it has nothing left to try.
        """
        self.ladder = tuple(rung for rung in self.ladder if rung < size) or self.ladder[:1]
