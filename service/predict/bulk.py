"""From many files to a table of results: several at once, in their order, and no more than can be held."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

from service.predict.pictures import find, name_of
from service.predict.progress import Rate, shown
from service.predict.results import Record, Results
from service.predict.scorers import Scorer


def predict_all(paths: list[Path], results: Results, scorer: Scorer) -> None:
    """Score every picture that the results do not have.

    Raises:
        CannotGoOn: what is done is kept.
    """
    known = [name_of(file) in results.done for file in find(paths)]
    todo = (file for file in find(paths) if name_of(file) not in results.done)
    rate = Rate()
    with shown(len(known), sum(known), rate) as tell, closing(scored(todo, scorer)) as records:
        for record in records:
            results.add(record)
            rate.count += 1
            tell(results.failed)
    count = len(results.done) + rate.count
    told = f"{count:,} picture{'s' * (count != 1)}, {results.failed:,} failed; {rate.count:,} new, {rate}"
    print(f"volo: {results.path}: {told}", file=sys.stderr)


def scored(files: Iterable[Path], scorer: Scorer) -> Generator[Record, None, None]:
    """The files' records, in their order, with two chunks for each thread under way at most."""
    waiting: deque[Future[list[Record]]] = deque()
    remaining = iter(files)
    threads = ThreadPoolExecutor(scorer.threads, thread_name_prefix="scorer")
    try:
        while True:
            while len(waiting) < 2 * scorer.threads and (chunk := list(islice(remaining, scorer.chunk))):
                waiting.append(threads.submit(scorer.score, chunk))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        scorer.stop()
        threads.shutdown(wait=False, cancel_futures=True)  # who interrupts does not want to wait
