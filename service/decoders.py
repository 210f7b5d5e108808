"""Threads that decode pictures, so that the event loop need not wait for it."""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue


class Work:
    """Something for a thread to do. ``done`` has its end, or the error it raised, in the loop that asked for it."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wanted = True
        """Set to False, it is not begun any more; what has begun cannot be stopped."""
        self._do = do

    def perform(self) -> None:
        """Do it in this thread, and tell the loop."""
        error: BaseException | None = None
        try:
            if self.wanted:
                self._do()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.done.get_loop().call_soon_threadsafe(self._settle, error)

    def _settle(self, error: BaseException | None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Decoders:
    """So many threads, which end with this object.

    They are no ``ThreadPoolExecutor``: for its locks the threads and the loop take the interpreter from each other
    several times a picture. With 32 pictures at once that made 66 us of CPU each for the way there and back, not 10.
    """

    def __init__(self, threads: int) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._submitted: list[Work] = []
        for number in range(threads):
            threading.Thread(target=_perform_all, args=[self._queue], name=f"decoder {number}", daemon=True).start()
            weakref.finalize(self, self._queue.put, None)

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


def _perform_all(queue: SimpleQueue[Work | None]) -> None:
    while work := queue.get():
        work.perform()
        del work  # it holds a picture, and the next one may be long in coming
