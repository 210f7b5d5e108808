"""The command line of `volo doctor`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from service.options import add_settings, faults, given_settings
from service.settings import Settings

if TYPE_CHECKING:
    from service.doctor.findings import Check, Finding

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """Tell why the service does not start, or not do well: versions and driver, devices,
limits of the machine or container, weights, port, and one picture the whole way.
It reads the settings that `volo serve` would. Exit status: 0, or 1 if something fails."""

NOT_SETTINGS = {"VOLO_TAG", "VOLO_PUBLISH", "VOLO_CPUS", "VOLO_MEMORY", "VOLO_API_KEY"}
"""What the compose file and `volo predict` are given."""
MARKS = {"well": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


def add_parser(commands: Commands) -> None:
    """Add `doctor` to the commands."""
    doctor = commands.add_parser(
        "doctor",
        help="tell why it does not work",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.set_defaults(command=run)
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument("--quick", action="store_true", help="start nothing, send no picture")
    add_settings(doctor, list(Settings.model_fields))


def run(arguments: argparse.Namespace) -> int:
    """Look at everything, and print it as it is found; the exit status."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what it has started ends with it
    findings = []
    show = (lambda _: None) if arguments.json else Page().show
    for finding in examine(arguments):
        findings.append(finding)
        show(finding)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    bad = sum(finding.state == "failed" for finding in findings)
    if not arguments.json:
        print(f"\n{bad} of {len(findings)} failed." if bad else "\nNothing was found that keeps it from serving.")
    return bool(bad)


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """All findings, in the order in which one depends on the other."""
    from service.doctor.findings import failed

    given = given_settings(arguments)
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
    except (ValidationError, UnicodeDecodeError) as error:
        yield failed(
            "Settings", "; ".join(faults(error)), "Mend it in the environment, in .env, or on the command line."
        )
        return
    for check in checks(settings, given, quick=arguments.quick):
        yield from check.findings()


def checks(settings: Settings, given: dict[str, str], *, quick: bool) -> Iterator[Check]:
    """What to look at. The picture is sent only if that starts no download."""
    from service.doctor import limits, runtime, weights, whole
    from service.doctor.findings import Check

    yield Check("Software", runtime.packages)
    yield Check("Device", lambda: runtime.cuda(settings), limit_s=60)
    yield Check("Machine", lambda: limits.machine(settings, weights.image_sizes(settings)))
    yield Check("Shared memory", limits.shared_memory)
    yield Check("Temporary files", limits.disk)
    yield Check("Port", lambda: limits.port(settings))
    yield Check("Certificate", lambda: limits.certificate(settings))
    yield Check("Settings", misspelt)
    yield Check("Labels", lambda: weights.labels(settings))
    yield Check("Weights", lambda: weights.check(settings), limit_s=120)
    if not quick:
        here = weights.here(settings)
        yield Check("Whole way", lambda: whole.check(settings, given) if here else whole.left_out(), limit_s=300)


def misspelt() -> Iterator[Finding]:
    """Variables that look like settings, and are not."""
    from service.doctor.findings import warning

    known = {f"VOLO_{name.upper()}" for name in Settings.model_fields} | NOT_SETTINGS
    for name in sorted(os.environ):
        if name.startswith("VOLO_") and name not in known:
            yield warning("Settings", f"{name} is not a setting", "Is it misspelt? `volo serve --help` has them all.")


class Page:
    """Findings for people: one a line, and below it what to do."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=False)

    def show(self, finding: Finding) -> None:
        mark, color = MARKS[finding.state]
        line = Table.grid(padding=(0, 2))
        line.add_column(style=color, width=1)
        line.add_column(style="bold", width=18)
        line.add_column(overflow="fold")
        line.add_row(mark, finding.subject, finding.found)
        if finding.advice:
            line.add_row("", "", f"→ {finding.advice}")
        self._console.print(line)
