"""How far it is: a bar on a terminal, elsewhere a line now and then, because logs are read too."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 60.0

Tell = Callable[[int], None]
"""Is told after each picture how many have failed by then."""


class Rate:
    """Counts, and says how many a second."""

    def __init__(self) -> None:
        self.count = 0
        self._started_s = time.monotonic()

    def __str__(self) -> str:
        return f"{self.count / max(time.monotonic() - self._started_s, 1e-9):,.0f}/s"


@contextmanager
def shown(total: int, done: int, rate: Rate) -> Iterator[Tell]:
    """Shows how many are done of all, if so many were at the start; the bar is gone at the end."""
    if sys.stderr.isatty():
        with Progress(*_columns(), console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(str(rate), total=total, completed=done, failed="")
            yield lambda failed: progress.update(
                task, advance=1, description=str(rate), failed=f"{failed:,} failed" if failed else ""
            )
    else:
        yield _lines(total, done, rate)


def _columns() -> tuple[BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn, TextColumn]:
    return (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
    )


def _lines(total: int, done: int, rate: Rate) -> Tell:
    told_s = time.monotonic()

    def tell(failed: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= LINE_EVERY_S:
            told_s = time.monotonic()
            print(f"volo: {done + rate.count:,} of {total:,} pictures, {failed:,} failed, {rate}", file=sys.stderr)

    return tell
