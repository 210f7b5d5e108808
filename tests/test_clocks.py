"""Deadlines do not notice when somebody sets the clock: all that is measured is measured on the monotonic one."""

import ast
from collections.abc import Iterator
from pathlib import Path

from running import ROOT

CIVIL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}
"""What tells the time of day, of the modules ``time`` and ``datetime``."""
ALLOWED = {
    "service/tracing.py": {"time_ns"},  # traces of several machines are laid side by side
    "service/bench/machine.py": {"now"},  # a report's date
}


def civil_times(file: Path) -> Iterator[str]:
    """The names of what a module asks for the time of day."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="time" | "datetime" | "date"), attr=name) if name in CIVIL:
                yield name
            case ast.Attribute(value=ast.Attribute(attr="datetime" | "date"), attr=name) if name in CIVIL:
                yield name
            case ast.ImportFrom(module="time", names=names):
                yield from (each.name for each in names if each.name in CIVIL)


def test_the_time_of_day_is_asked_for_only_to_be_told() -> None:
    asked = {str(file.relative_to(ROOT)): set(civil_times(file)) for file in (ROOT / "service").rglob("*.py")}
    assert {file: names for file, names in asked.items() if names} == ALLOWED


def test_every_way_to_ask_is_seen(tmp_path: Path) -> None:
    ways = {
        "import time\ntime.time()": ["time"],
        "from time import time": ["time"],
        "from datetime import datetime\ndatetime.now()": ["now"],
        "import datetime\ndatetime.datetime.utcnow()": ["utcnow"],
        "import time\ntime.monotonic()": [],
    }
    for number, (way, found) in enumerate(ways.items()):
        (tmp_path / f"{number}.py").write_text(way)
        assert list(civil_times(tmp_path / f"{number}.py")) == found
