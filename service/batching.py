"""Which jobs run next: a bounded line in order of deadline, refused at the door, batched by load alone.

Pure bookkeeping: it holds no clock, no timer and no lock, and returns what to do. The caller says what time
it is (`now`, monotonic seconds) and acts:

    refusal = queue.submit(job, now)        # a job came
    gone = queue.cancel(key)                # its caller left
    late = queue.expire(now)                # then, after every event: answer these,
    while batch := queue.take(now): ...     # start these,
    queue.finished(batch, seconds)          # and say when each is done

Jobs in the background use what the others leave: places that a run has to spare, and lanes that nobody waits for. So
that they get on even where nothing is left, they have a small share of the device's time whatever happens.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.costs import Costs
from service.line import Job, Line

CAUTION = 0.1
BACKGROUND_RUN_S = 0.02
"""How long a run in the background may take, unless one of a single job takes longer."""
BACKGROUND_SHARE = 0.05
"""So much device time the background gets for each second that the others get, however many of them wait.

By the costs that are known, from when a job waits there until none does any more; a run that is due may be late by one
of the others. To them it costs that share of their throughput, and a lone one of them waits for at most one such run.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job was not let in, and in how many seconds one with the same patience would be."""

    reason: Literal["queue_full", "deadline"]
    retry_after_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Jobs that run together, in a run of `padded_size` places: earliest deadline first, those in the background last.

    A run that is `alone` has every lane to itself: nothing else runs, nothing else waits.
    """

    jobs: tuple[Job, ...]
    padded_size: int
    alone: bool = False


def halves(jobs: tuple[Job, ...]) -> tuple[tuple[Job, ...], tuple[Job, ...]]:
    """What to run instead of a batch that raised, until the culprit stands alone; the second may be empty."""
    middle = (len(jobs) + 1) // 2
    return jobs[:middle], jobs[middle:]


class _Outlook(NamedTuple):
    """What is before those who wait now: when each lane can start its next run, the soonest first, and what a run in
    the background takes, if any job waits there."""

    now: float
    starts: list[float]
    behind_s: float | None


class Queue:
    """The jobs that wait, at most `limit` of them and as many in the background, and the runs under way.

    `lanes` runs go on at once, beside each other: cores, say. `ahead` more are handed over while every lane is busy, so
    that the device finds its next run at once; only when a full one waits, because a run handed over takes in no more.

    A job is let in if it is met even though everything until then takes longer than was measured by a share of
    `caution`. Under more load than can be met the line is that much shorter, and as many are met; without it the last
    in the line are there on the dot, and every second one of them is late.
    """

    def __init__(self, limit: int, costs: Costs, lanes: int = 1, ahead: int = 0, caution: float = CAUTION) -> None:
        self.limit = limit
        self.costs = costs
        self.lanes = lanes
        self.ahead = ahead
        self._caution = caution
        self._line = Line()
        self._background = Line()
        self._running: dict[Batch, float] = {}  # when each run should be done
        self._owed_s = 0.0  # of the device's time, to the background

    @property
    def depth(self) -> int:
        """How many jobs wait, those in the background not counted."""
        return len(self._line)

    @property
    def background_depth(self) -> int:
        """How many jobs wait in the background."""
        return len(self._background)

    @property
    def in_run(self) -> int:
        """How many jobs are on the device."""
        return sum(len(batch.jobs) for batch in self._running)

    def predicted_wait_s(self, now: float) -> float:
        """Seconds from now to the start of a run that would hold the next in line."""
        return self._start_s(self.depth, self._outlook(now)) - now

    def submit(self, job: Job, now: float) -> Refusal | None:
        """Let `job` wait, or refuse it at once. Raise ValueError if its key is already waiting."""
        if job.key in self._line or job.key in self._background:
            raise ValueError(f"a job with the key {job.key!r} is already waiting")
        line = self._background if job.background else self._line
        if len(line) >= self.limit:
            return Refusal("queue_full", self._retry_after_s(job, now))
        if not job.background and not self._fits(job, now):
            return Refusal("deadline", self._retry_after_s(job, now))
        line.add(job)
        return None

    def cancel(self, key: Hashable) -> bool:
        """Take the job out of its line; False if it does not wait there (any more)."""
        return self._line.remove(key) or self._background.remove(key)

    def expire(self, now: float) -> tuple[Job, ...]:
        """Take out the jobs that could not be met even if each ran alone at once."""
        finish_s = now + self.costs.seconds(1)
        late, late_too = (line.leave(slice(0, line.first_to_bear(finish_s))) for line in (self._line, self._background))
        return late + late_too

    def take(self, now: float) -> Batch | None:
        """Start the run that should be next; None while every lane is busy or nobody can be met."""
        idle = self.lanes - len(self._running)
        if idle <= 0 and (idle <= -self.ahead or self.depth < self.costs.largest):
            return None
        start_s = self._starts(now)[0]
        jobs = self._run_behind(start_s) if self._background_is_due() else ()
        jobs = jobs or self._run_in_front(start_s, lanes=max(idle, 1))
        if not jobs and idle > min(1, self.lanes - 1):  # where there are several lanes, one is kept for whoever comes
            jobs = self._run_behind(start_s)
        if not jobs:
            return None
        alone = idle == self.lanes > 1 and not self._line and not jobs[0].background and not self._background
        batch = Batch(jobs, self.costs.padded_size(len(jobs)), alone)
        self._running[batch] = start_s + self.costs.seconds(len(jobs))
        self._settle(batch)
        return batch

    def finished(self, batch: Batch, seconds: float | None) -> None:
        """Free the lane and learn the cost, unless the run raised (None). KeyError if it is not under way."""
        del self._running[batch]
        if seconds is not None and not batch.alone:  # with every lane to itself it is faster than beside others
            self.costs.learn(batch.padded_size, seconds)

    def _background_run(self) -> int:
        """How many jobs a run in the background has at most: who comes meanwhile shall not wait long for its end."""
        return max([1, *(size for size in self.costs.ladder if self.costs.seconds(size) <= BACKGROUND_RUN_S)])

    def _background_s(self) -> float:
        """What a run in the background takes."""
        return self.costs.seconds(min(self._background_run(), len(self._background)))

    def _background_is_due(self) -> bool:
        """Whether what the background is owed pays for a run."""
        return bool(self._background) and self._owed_s >= self._background_s()

    def _settle(self, batch: Batch) -> None:
        """Note what a run takes of the device's time, and how much of that goes to the background."""
        seconds = self.costs.seconds(len(batch.jobs))
        behind_s = seconds * sum(job.background for job in batch.jobs) / len(batch.jobs)
        owed_s = self._owed_s + BACKGROUND_SHARE * (seconds - behind_s) - behind_s
        # what it got beyond its share was nobody else's loss; and nothing is put by while nobody waits there
        self._owed_s = max(owed_s, 0.0) if self._background else 0.0

    def _run_in_front(self, start_s: float, lanes: int) -> tuple[Job, ...]:
        """Jobs for a run, out of the line, which is shared by so many lanes; and in the places to spare others."""
        jobs = self._next_run(self._line, start_s, -(-self.depth // lanes))
        if not jobs:
            return ()
        spare = self.costs.padded_size(len(jobs)) - len(jobs)
        first = self._background.first_to_bear(start_s + self.costs.seconds(len(jobs)))
        return jobs + self._background.leave(slice(first, first + spare))

    def _run_behind(self, start_s: float) -> tuple[Job, ...]:
        """Jobs for a run in the background, out of their line."""
        return self._next_run(self._background, start_s, self._background_run())

    def _next_run(self, line: Line, start_s: float, share: int) -> tuple[Job, ...]:
        """The stretch of a line to run next, out of it: a lane's share, or less where more jobs are met that way.

        Jobs before the stretch cannot bear its run: they are passed over where to save them would cost more
        others their deadlines. Cut to save every first job, runs would shrink just when the load is highest.
        """
        if not line:
            return ()
        size = self.costs.first_run(min(share, len(line)))
        if line.first_to_bear(start_s + self.costs.seconds(size)) > 0:
            sizes = [size, *(rung for rung in reversed(self.costs.ladder) if rung < size)]
            size = max(sizes, key=lambda size: self._met(line, start_s, size))
        first = line.first_to_bear(start_s + self.costs.seconds(size))
        return line.leave(slice(first, first + size))

    def _met(self, line: Line, start_s: float, size: int) -> int:
        """How many of the waiting jobs are met by a run of `size` then, and full ones after it."""
        met, place, finish_s = 0, 0, start_s
        while place < len(line):
            finish_s += self.costs.seconds(min(size, len(line) - place))
            place = max(place, line.first_to_bear(finish_s))
            met += min(size, len(line) - place)
            place += size
            size = self.costs.largest
        return met

    def _fits(self, job: Job, now: float) -> bool:
        """Whether `job` is met in its place in the line, and makes nobody late who was let in before."""
        place = self._line.place_of(job)
        outlook, size = self._outlook(now), self.costs.largest
        pushed_a_run_back = range(place - place % size + size - 1, self.depth, size)
        return self._finish_s(place, outlook) <= job.deadline_s and not any(
            self._finish_s(last, outlook) <= self._line[last].deadline_s < self._finish_s(last + 1, outlook)
            for last in pushed_a_run_back
        )

    def _retry_after_s(self, job: Job, now: float) -> float:
        """Seconds until a run has made room, and the last in the line is met with the patience of `job`.

        For a patience shorter than a run alone no wait is enough; it then says how much is missing.
        """
        outlook = self._outlook(now)
        wait_s = max(outlook.starts[0] - now, self._finish_s(self.depth, outlook) - job.deadline_s)
        return wait_s + self.costs.seconds(1)  # whoever comes back on the dot is as often too early as not

    def _starts(self, now: float) -> list[float]:
        """When each lane can start its next run, the soonest first."""
        ends = [max(end_s, now) for end_s in self._running.values()]
        # the first ends of runs that others are ahead for are no starts: those others begin there
        return sorted(ends + [now] * (self.lanes - len(ends)))[-self.lanes :]

    def _outlook(self, now: float) -> _Outlook:
        return _Outlook(now, self._starts(now), self._background_s() if self._background else None)

    def _start_s(self, place: int, outlook: _Outlook) -> float:
        """When the run of the job at `place` will start, after full runs on every lane and the background's share."""
        runs_before, full_s = place // self.costs.largest, self.costs.seconds(self.costs.largest)
        start_s = outlook.starts[runs_before % self.lanes] + runs_before // self.lanes * full_s
        if outlook.behind_s:
            owed_s = self._owed_s + BACKGROUND_SHARE * runs_before * full_s
            start_s += owed_s // outlook.behind_s * outlook.behind_s / self.lanes
        return start_s

    def _finish_s(self, place: int, outlook: _Outlook) -> float:
        """When the job at `place` will surely be done, in a run as small as can be afforded."""
        # A short line leaves time to cut a run behind an urgent job; under load that is not to be counted on.
        own = place + 1 if self.depth < self.costs.largest else self.costs.largest
        finish_s = self._start_s(place, outlook) + self.costs.seconds(own)
        return finish_s + self._caution * (finish_s - outlook.now)
