"""Runs of one device that are timed in turn, so that ratios between them hold on a machine that is not quiet."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]

_SLICE_S = 0.25
"""Of a round, for one contender: short enough that what disturbs one disturbs the others too."""
_TRIALS = 3
"""Runs that show how long one takes."""
_LEAST_ROUNDS = 5


def timed(run: Run, runs: int, device: torch.device) -> list[float]:
    """Seconds of each of so many runs, one right after the other."""
    if device.type == "cuda":
        return _timed_by_events(run, runs, device)
    times = []
    for _ in range(runs):
        started_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - started_s)
    return times


def _timed_by_events(run: Run, runs: int, device: torch.device) -> list[float]:
    """As the device sees it: the next run is there before one has ended."""
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]  # type: ignore[no-untyped-call]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(marks)]


@dataclass(frozen=True)
class Timing:
    """Rounds of runs. ``rounds_s`` holds the seconds of every run, round by round."""

    rounds_s: Sequence[Sequence[float]]

    @property
    def runs_s(self) -> list[float]:
        """The seconds of every run."""
        return [seconds for round_s in self.rounds_s for seconds in round_s]

    @property
    def median_s(self) -> float:
        """Of a run."""
        return statistics.median(self.runs_s)

    def against(self, other: Timing) -> float:
        """How many times as fast as the other: the median of the rounds' ratios, as both had the same disturbances."""
        pairs = zip(self.rounds_s, other.rounds_s, strict=True)
        return statistics.median(statistics.median(theirs) / statistics.median(ours) for ours, theirs in pairs)


def alternate(
    contenders: Sequence[Run], seconds: float, device: torch.device, tell: Callable[[float], None] = lambda _: None
) -> list[Timing]:
    """Time contenders in turn, round after round, for about ``seconds`` each.

    ``tell`` is told which part of the rounds is done, from 0 to 1.
    """
    for run in contenders:
        timed(run, 1, device)  # the first run allocates, and may compile
    lengths = [statistics.median(timed(run, _TRIALS, device)) for run in contenders]
    slice_s = min(_SLICE_S, seconds / _LEAST_ROUNDS)
    counts = [max(1, round(slice_s / length)) for length in lengths]
    rounds = max(_LEAST_ROUNDS, round(seconds / max(slice_s, *lengths)))
    taken: list[list[list[float]]] = [[] for _ in contenders]
    for done in range(rounds):
        tell(done / rounds)
        for times, run, count in zip(taken, contenders, counts, strict=True):
            times.append(timed(run, count, device))
    return [Timing(times) for times in taken]
