"""How far a measurement is, on a terminal; elsewhere nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Tell = Callable[[str, float], None]
"""Is told what is measured, and which part of that is done, from 0 to 1."""


@contextmanager
def shown() -> Iterator[Tell]:
    """A line that says what is measured and how far it is; it is gone at the end."""
    columns = (TextColumn("{task.description}"), BarColumn())
    # seldom: what draws takes its time from what is measured
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, part: progress.update(task, description=what, completed=max(0.0, part))
