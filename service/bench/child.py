"""A service of our own to measure: started, waited for until it is ready, and stopped in good order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

_START_S = 600.0
_STOP_S = 30.0
_POLL_S = 0.1
_LAST_WORDS = 10_000


class Own(NamedTuple):
    """A service that we have started."""

    url: str
    pid: int


class CannotStart(Exception):
    """The service ended before it was ready, or never was; the message is why, as it has said."""


@contextmanager
def serving(options: Sequence[str]) -> Iterator[Own]:
    """``volo serve`` with these options on a free port, from when it is ready to the end of the block.

    Raises:
        CannotStart: it is not to be had.
    """
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port), *options],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us; it hears of the end from us
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _ready(url, process):
                log.seek(max(0, log.tell() - _LAST_WORDS))
                raise CannotStart(last_words(log.read().decode(errors="replace")))
            yield Own(url, process.pid)
        finally:
            _stop(process)


def last_words(log: str) -> str:
    """Why a service ended, of what it has logged: the reason of the last grave line, or else the last line."""
    lines = log.strip().splitlines() or ["it said nothing"]
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            if entry["level"] == "critical":
                return str(entry["reason"])
    return lines[-1]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}
    found = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path)
    return {**kept, "PYTHONPATH": found, "VOLO_GRACE_S": "0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urlopen(f"{url}/health/ready", timeout=_STOP_S):
                return True
        except (URLError, OSError):  # it does not listen yet, or says 503
            time.sleep(_POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children go with it
        process.wait()
