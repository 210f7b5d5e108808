"""From many files to a table of results: several at once, in their order, and no more than can be held."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.predict.pictures import find
from service.predict.results import Record, Results
from service.predict.scorers import Scorer


def predict_all(paths: list[Path], results: Results, scorer: Scorer) -> int:
    """Score every picture that the results do not have; how many could not be.

    Raises:
        ServiceGone: whoever scores has gone; what is done is kept.
    """
    started_s, failed, done = time.monotonic(), 0, 0
    with _bar() as bar:
        task = bar.add_task("", total=sum(1 for _ in find(paths)), failed="")
        bar.update(task, completed=len(results.done))
        todo = (file for file in find(paths) if str(file) not in results.done)
        for record in scored(todo, scorer):
            results.add(record)
            done += 1
            failed += "error" in record
            rate = done / (time.monotonic() - started_s)
            bar.update(task, advance=1, description=f"{rate:,.0f}/s", failed=f"{failed:,} failed" if failed else "")
    before = f", {len(results.done):,} were there before" if results.done else ""
    rate = done / max(time.monotonic() - started_s, 1e-9)
    print(f"volo: {done:,} pictures, {failed:,} failed, {rate:,.0f}/s{before}: {results.path}", file=sys.stderr)
    return failed


def scored(files: Iterable[Path], scorer: Scorer) -> Iterator[Record]:
    """The files' records, in their order, with two chunks for each thread under way at most."""
    waiting: deque[Future[list[Record]]] = deque()
    remaining = iter(files)
    with ThreadPoolExecutor(scorer.threads, thread_name_prefix="scorer") as threads:
        try:
            while True:
                while len(waiting) < 2 * scorer.threads and (chunk := list(islice(remaining, scorer.chunk))):
                    waiting.append(threads.submit(scorer.score, chunk))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            scorer.stop()
            threads.shutdown(wait=False, cancel_futures=True)


def _bar() -> Progress:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
