"""What would keep the event loop's others waiting is done beside it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import copy_context
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(threads: Executor | None, do: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
    """What it returns, done by one of these threads; with None, of the loop's own.

    Cancelled, it is waited for: what it reads and holds must not be let go before.
    """
    run = copy_context().run
    doing = asyncio.get_running_loop().run_in_executor(threads, lambda: run(do, *given, **named))
    try:
        await asyncio.wait([doing])
        return doing.result()
    except asyncio.CancelledError:
        while not doing.done():
            with suppress(asyncio.CancelledError):  # however often
                await asyncio.wait([doing])
        doing.exception()  # or asyncio complains that nobody asked
        raise
    finally:
        del doing  # what it raised would hold this frame, and all that was given, until the next collection
