"""Who waits: jobs, the earliest deadline first."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """One picture that waits for the device; times are monotonic seconds."""

    key: Any
    """Hashable; no two waiting jobs have the same."""
    arrival_s: float
    deadline_s: float
    background: bool = False


_deadline = attrgetter("deadline_s")
_rank = attrgetter("deadline_s", "arrival_s")


class Line:
    """Jobs that wait, the earliest deadline first."""

    def __init__(self) -> None:
        # A sorted list, not a heap: a place in the line is one bisection, a cancelled job leaves nothing
        # behind, and to shift a few thousand pointers costs less than the calls around it.
        self._jobs: list[Job] = []
        self._by_key: dict[Hashable, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, place: int) -> Job:
        return self._jobs[place]

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def add(self, job: Job) -> None:
        insort(self._jobs, job, key=_rank)
        self._by_key[job.key] = job

    def remove(self, key: Hashable) -> bool:
        """Take the job out; False if it does not wait here."""
        job = self._by_key.pop(key, None)
        if job is None:
            return False
        del self._jobs[self._jobs.index(job, bisect_left(self._jobs, _rank(job), key=_rank))]
        return True

    def leave(self, stretch: slice) -> tuple[Job, ...]:
        """Take out the jobs of a stretch."""
        jobs = tuple(self._jobs[stretch])
        del self._jobs[stretch]
        for job in jobs:
            del self._by_key[job.key]
        return jobs

    def place_of(self, job: Job) -> int:
        """Where a new job would stand."""
        return bisect_right(self._jobs, _rank(job), key=_rank)

    def first_to_bear(self, finish_s: float) -> int:
        """The place of the first job that is met by a run that ends at `finish_s`; all behind it are too."""
        return bisect_left(self._jobs, finish_s, key=_deadline)
