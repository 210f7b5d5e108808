"""Threads that decode pictures, so that the event loop need not wait for it."""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

from service.priority import compute_behind


@dataclass(frozen=True)
class Heavy:
    """What is left to do, and how many bytes of memory it takes."""

    need_bytes: int
    do: Callable[[], object]


class Work:
    """Something for a thread to do. ``done`` has its end, or the error it raised, in the loop that asked for it."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wanted = True
        self.need_bytes = 0
        self._at_work = False
        self._do = do

    def abandon(self) -> bool:
        """Have it not begun, and let go of what it holds; True if a thread is at it, and cannot be stopped."""
        self.wanted = False
        self._do = _nothing  # in this order, because a thread may be about to leave the rest of it there
        return self._at_work

    def perform(self) -> bool:
        """Do it in this thread, and tell the loop; False if the rest of it is heavy, and left to others."""
        error: BaseException | None = None
        self._at_work = True
        try:
            rest = self._do() if self.wanted else None
            if isinstance(rest, Heavy):
                self.need_bytes, self._do = rest.need_bytes, rest.do
                if self.wanted:
                    self._at_work = False
                    return False
                self._do = _nothing
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.done.get_loop().call_soon_threadsafe(self._settle, error)
        return True

    def _settle(self, error: BaseException | None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


def _nothing() -> None:
    """What is left to do when nobody wants it."""


class Memory:
    """So many bytes, which are lent in the order in which they are asked for."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def lent(self, need: int) -> Iterator[None]:
        """Wait until there are so many; nobody may need more than there are in all."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= need)
            self._free -= need
        try:
            yield
        finally:
            with self._changed:
                self._free += need
                self._changed.notify()


class Decoders:
    """So many threads, which end with this object; and as many for what turns out to be heavy, which share a memory.

    So whatever the large pictures take, the small ones go on. They are no ``ThreadPoolExecutor``: for its locks the
    threads and the loop take the interpreter from each other several times a picture. With 32 pictures at once that
    made 66 us of CPU each for the way there and back, not 10.
    """

    def __init__(self, threads: int, memory_bytes: int = 1 << 62) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._submitted: list[Work] = []
        heavy: SimpleQueue[Work | None] = SimpleQueue()
        memory = Memory(memory_bytes)
        for number in range(threads):
            for name, target, queue, *others in (
                ("decoder", _perform_all, self._queue, heavy),
                ("heavy decoder", _perform_heavy, heavy, memory),
            ):
                threading.Thread(target=target, args=[queue, *others], name=f"{name} {number}", daemon=True).start()
                weakref.finalize(self, queue.put, None)

    def submit(self, do: Callable[[], object]) -> Work:
        """Have it done by the next thread that is free, from the end of this turn of the loop on.

        A thread that is woken in the midst of the turn only takes the interpreter from whoever else is to be served.
        """
        work = Work(do)
        if not self._submitted:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._submitted.append(work)
        return work

    def _hand_over(self) -> None:
        for work in self._submitted:
            self._queue.put(work)
        self._submitted.clear()


def _perform_all(queue: SimpleQueue[Work | None], heavy: SimpleQueue[Work | None]) -> None:
    compute_behind()
    while work := queue.get():
        if not work.perform():
            heavy.put(work)
        del work  # it holds a picture, and the next one may be long in coming


def _perform_heavy(queue: SimpleQueue[Work | None], memory: Memory) -> None:
    compute_behind()
    while work := queue.get():
        with memory.lent(work.need_bytes if work.wanted else 0):
            work.perform()
        del work
