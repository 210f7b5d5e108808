"""`volo bench serve`: load on a service, and what became of it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from service.bench import child, pictures, report, scrape
from service.bench.client import FORM_TYPE, Target, as_form, connected
from service.bench.crew import Closed, Open
from service.bench.figures import Figures
from service.bench.progress import shown
from service.bench.search import highest_rate
from service.bench.stand import Stand, built
from service.options import given_settings, option, read_settings
from service.process import INTERRUPTED
from service.settings import cores
from service.terminal import USAGE, fail

_CONNECTIONS = (1, 8, 32, 64)
_SATURATING = 32
"""Connections that show about where the highest rate lies."""
_CORES_PER_GENERATOR = 4
_SURE = 500
"""Requests of which the hundredth slowest tells something."""


def run(arguments: argparse.Namespace) -> int:
    """Measure as told; the exit status."""
    generators = arguments.processes or max(1, cores() // _CORES_PER_GENERATOR)
    try:
        with _server(arguments) as (url, pid):
            target = _target(arguments, url)
            model = scrape.model(url)
            _knock(target)
            with (
                shown() as tell,
                built(target, generators, arguments.seconds, arguments.warm_up, pid, tell) as stand,
            ):
                highest, status = _load(stand, arguments)
    except child.CannotStart as error:
        fail(f"the service did not start: {error}", 1)
    except EOFError:
        fail("a load generator has died", 1)
    except (OSError, ValueError) as error:
        fail(str(error), 1)
    _report(stand.steps, arguments, target, model, highest)
    return status


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Where the service is, and its process if that is known."""
    given = given_settings(arguments)
    if arguments.url:
        if given:
            fail(f"{option(next(iter(given)))} is for a service that bench starts itself: give no URL", USAGE)
        yield _address(arguments.url), arguments.pid
        return
    read_settings(arguments)  # to complain here and at once
    with child.serving([part for name, value in given.items() for part in (option(name), value)]) as own:
        yield own


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        fail(f"{url} is no address such as http://127.0.0.1:8000", USAGE)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _target(arguments: argparse.Namespace, url: str) -> Target:
    bodies, kind = pictures.read(arguments.pictures), "image/jpeg"
    if arguments.multipart:
        bodies, kind = [as_form(body, arguments.multipart) for body in bodies], FORM_TYPE
    ours = bool(scrape.read(url))
    expected = arguments.expect if arguments.expect is not None else '"predictions"' * ours
    headers = {"Content-Type": kind, **dict(arguments.header)}
    return Target(f"{url}{arguments.path}", bodies, headers, expected.encode(), arguments.patience)


def _knock(target: Target) -> None:
    """Send one request, and end the command if nobody is there."""

    async def ask() -> str:
        async with connected(target) as client:
            return await client.send()

    if (verdict := asyncio.run(ask())) in ("connection", "timeout"):
        fail(f"nobody answers at {target.url} ({verdict})", 1)
    elif verdict != "ok":
        report.warn(f"{target.url} says to the first picture: {verdict}")


def _load(stand: Stand, arguments: argparse.Namespace) -> tuple[float | None, int]:
    """Put all loads on: the highest rate within the limit, if it was looked for, and the exit status."""
    connections = arguments.connections or ([] if arguments.rates or arguments.slo_ms else _CONNECTIONS)
    seeds = iter(range(arguments.seed * 1000, (arguments.seed + 1) * 1000))

    def arrive(rate: float) -> Figures:
        return stand.measure(Open(rate, arguments.cap, (next(seeds),)))

    try:
        for count in connections:
            stand.measure(Closed(count))
        for rate in arguments.rates or ():
            arrive(rate)
        if arguments.slo_ms is None:
            return None, 0
        first = max((step.answered for step in stand.steps if step.load == "closed"), default=0.0)
        first = first or stand.measure(Closed(_SATURATING)).answered or 1.0
        return highest_rate(lambda rate: _holds(arrive(rate), arguments.slo_ms), first), 0
    except KeyboardInterrupt:
        return None, INTERRUPTED


def _holds(step: Figures, slo_ms: float) -> bool:
    return not step.errors and step.p99_ms < slo_ms


def _report(
    steps: list[Figures], arguments: argparse.Namespace, target: Target, model: str, highest: float | None
) -> None:
    size = sum(map(len, target.bodies)) / len(target.bodies)
    settings: dict[str, Any] = {
        "url": target.url,
        "service": model,
        "pictures": len(target.bodies),
        "mean_bytes": round(size),
        **{name: getattr(arguments, name) for name in ("seconds", "warm_up", "cap", "seed", "slo_ms", "multipart")},
        **given_settings(arguments),
    }
    head = f"{target.url}{model and ', '}{model}, {len(target.bodies)} pictures of {size / 1e3:.0f} KB on average"
    report.print_load(steps, head)
    if highest is not None:
        print(f"\np99 under {arguments.slo_ms:g} ms without errors: up to {highest:.1f} requests a second")
        if (count := round(highest * arguments.seconds)) < _SURE:
            report.warn(f"that p99 is one of {count} requests; longer --seconds make it surer")
    if arguments.json:
        report.write_load(arguments.json, settings, steps, highest)
    if arguments.plot:
        from service.bench import plot

        plot.draw_load(arguments.plot, steps, arguments.slo_ms)
