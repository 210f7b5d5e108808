"""What takes processor time, on a virtual clock."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

Then = Callable[[], None]


@dataclass
class Cores:
    """Tasks under way and the time. Each has a core of its own, or an equal share where they are more than the cores.

    Tasks are kept by when they would end on a clock that goes as fast as each of them does: what comes or goes changes
    that clock's speed, and the order of nobody.
    """

    count: float
    now: float = 0.0
    _progress_s: float = 0.0
    _tasks: list[tuple[float, int, Then]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def start(self, seconds: float, then: Then) -> None:
        """Begin a task that takes so long on a core of its own."""
        heapq.heappush(self._tasks, (self._progress_s + seconds, next(self._order), then))

    def pass_to(self, when_s: float) -> None:
        """Let time pass, and do what is to be done at the end of each task that ends meanwhile; up to inf, of all."""
        tasks = self._tasks
        while tasks:
            slowness = max(1.0, len(tasks) / self.count)
            end_s = self.now + (tasks[0][0] - self._progress_s) * slowness
            if end_s > when_s:
                self._progress_s += (when_s - self.now) / slowness
                break
            self.now = end_s
            self._progress_s, _, then = heapq.heappop(tasks)
            then()
        if when_s < math.inf:
            self.now = when_s


class Server:
    """Does so many things at once, in the order in which they came: a worker, or the engine's event loop."""

    def __init__(self, cores: Cores, seconds: float, at_once: int = 1) -> None:
        self._cores = cores
        self._seconds = seconds
        self._idle = at_once
        self._waiting: deque[Then] = deque()
        self.busy_s = 0.0

    def serve(self, then: Then) -> None:
        """Do it when its turn comes, and then go on with what is next."""
        if self._idle:
            self._begin(then)
        else:
            self._waiting.append(then)

    def _begin(self, then: Then) -> None:
        self._idle -= 1
        self._cores.start(self._seconds, partial(self._end, then, self._cores.now))

    def _end(self, then: Then, began_s: float) -> None:
        self.busy_s += self._cores.now - began_s
        self._idle += 1
        if self._waiting:
            self._begin(self._waiting.popleft())
        then()
