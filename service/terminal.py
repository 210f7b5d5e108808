"""What the commands print: tables, and the one line that says why they cannot."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

USAGE = 2
"""Exit status of a command that was mistyped."""


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: set[str]) -> None:
    """Print columns, those in ``right`` aligned so. On a terminal long texts are folded; elsewhere a row is a line."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False).print(table)


@contextmanager
def saving(file: Path) -> Iterator[None]:
    """For what writes a file: if it cannot, end the command and say why. On a full disk no half of a file is left."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC and file.is_file():
            file.unlink()
        fail(f"{file} cannot be written: {error.strerror}", 1)


def fail(reason: str, status: int) -> NoReturn:
    """End the command, and say why on standard error."""
    print(f"volo: {reason}", file=sys.stderr)
    sys.exit(status)
