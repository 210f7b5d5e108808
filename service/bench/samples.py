"""What a load gave: every request's times, kept one by one until the end, so that figures drawn from them are exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """The requests of one step and its warm-up, in seconds from the start of its window.

    Attributes:
        due_s: when each was to be sent; in a closed loop, when it was sent. Negative in the warm-up.
        sent_s: when it was sent.
        done_s: when its answer was there, or its fault.
        kinds: what became of it, as an index of ``names``.
        names: what may become of a request; the first is "ok".
        cpu_s: what the generator spent in the window.
    """

    due_s: Seconds
    sent_s: Seconds
    done_s: Seconds
    kinds: NDArray[np.int64]
    names: tuple[str, ...]
    cpu_s: float

    def latencies_s(self) -> Seconds:
        """Of the window's good answers, from when they were to be sent: a server that stalls cannot hide."""
        good = (self.kinds == 0) & (self.due_s >= 0)
        latencies_s: Seconds = self.done_s[good] - self.due_s[good]
        return latencies_s

    def lags_s(self) -> Seconds:
        """How much later than they were to be sent the window's requests were sent."""
        due = self.due_s >= 0
        lags_s: Seconds = self.sent_s[due] - self.due_s[due]
        return lags_s

    def answered(self, seconds: float) -> int:
        """How many good answers came in the window; some to requests sent before it, as others come after it."""
        return int(((self.kinds == 0) & (self.done_s >= 0) & (self.done_s < seconds)).sum())

    def errors(self) -> dict[str, int]:
        """How many of the window's requests ended in which kind of error, the commonest first."""
        counts = Counter(self.kinds[self.due_s >= 0].tolist())
        return {self.names[kind]: count for kind, count in counts.most_common() if kind}


def merge(parts: Sequence[Samples]) -> Samples:
    """All generators' requests as one's: exact, because no figure has been drawn from them yet."""
    names = ("ok", *sorted({name for part in parts for name in part.names[1:]}))
    renumbered = [np.array([names.index(name) for name in part.names])[part.kinds] for part in parts]
    return Samples(
        due_s=np.concatenate([part.due_s for part in parts]),
        sent_s=np.concatenate([part.sent_s for part in parts]),
        done_s=np.concatenate([part.done_s for part in parts]),
        kinds=np.concatenate(renumbered),
        names=names,
        cpu_s=sum(part.cpu_s for part in parts),
    )


def percentile(values: Seconds, percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed (nearest rank); NaN if there are none."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if values.size else float("nan")
