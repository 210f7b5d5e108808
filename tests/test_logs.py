"""Logs are one line an event, in one form whoever speaks, and nobody's input breaks out of its line."""

import json
import logging
import os
import pty
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from running import environment

from service.logs import configure, logger


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_machines_get_json(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", "worker 7")
    logger.info("model ready", model="embedded", cost_ms={1: 2.5})
    (line,) = lines(capfd)
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "event": "model ready",
        "model": "embedded",
        "cost_ms": {"1": 2.5},
        "level": "info",
        "process": "worker 7",
    }


def test_what_happens_for_a_request_has_its_id(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", "worker 0")
    with structlog.contextvars.bound_contextvars(request_id="abc"):
        logger.warning("ours")
        logging.getLogger("library").warning("of %s", "another")
    logger.warning("later")
    assert [(line["event"], line.get("request_id")) for line in lines(capfd)] == [
        ("ours", "abc"),
        ("of another", "abc"),
        ("later", None),
    ]


def test_other_libraries_warnings_and_errors_come_in_the_same_form(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", "worker 0")
    logging.getLogger("uvicorn.error").info("what only uvicorn cares about")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logging.getLogger("asyncio").exception("a task failed")
    first, second, third = lines(capfd)
    assert (first["event"], first["level"], first["process"]) == (
        "Invalid HTTP request received.",
        "warning",
        "worker 0",
    )
    assert "this is old" in second["event"]
    assert "ZeroDivisionError" in third["exception"]


@pytest.mark.parametrize(("level", "heard"), [("debug", 3), ("info", 2), ("error", 1)])
def test_only_what_matters_enough_is_logged(capfd: pytest.CaptureFixture[str], level: str, heard: int) -> None:
    configure(level, "json", "worker 0")
    logger.debug("detail")
    logger.info("event")
    logger.error("fault")
    assert len(lines(capfd)) == heard


def test_a_traceback_tells_where_but_not_what_was_in_hand(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", "worker 0")
    secret = "of the caller"
    try:
        raise ValueError(len(secret))
    except ValueError:
        logger.exception("internal error")
    (line,) = lines(capfd)
    assert "test_logs.py" in line["exception"]
    assert "ValueError: 13" in line["exception"]
    assert secret not in json.dumps(line)


@pytest.mark.parametrize("style", ["json", "text"])
def test_nobody_writes_lines_or_moves_the_cursor_in_our_name(capfd: pytest.CaptureFixture[str], style: str) -> None:
    configure("info", style, "worker 0")
    evil = "x\n12:00:00 [critical] all is lost\r\x1b[2J\x9b2J\u2028"
    logger.info(evil, given=evil)
    logging.getLogger("library").warning(evil)
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError:
        logger.exception("internal error")
    text = capfd.readouterr().err
    assert not set("\r\x1b\x9b\x07\u2028") & set(text)
    assert not [line for line in text.split("\n") if line.startswith("12:00:00")]


@pytest.mark.parametrize("odd", ["half a pair \ud800", "caf\xe9", 2**70, {1, 2}, Path("a")])
def test_whatever_is_logged_is_a_line_of_json(capfd: pytest.CaptureFixture[str], odd: object) -> None:
    configure("info", "json", "worker 0")
    logger.info("odd", value=odd)
    (line,) = lines(capfd)
    assert line["value"] == (odd if isinstance(odd, str | int) else repr(odd))


def test_people_on_a_terminal_get_readable_lines() -> None:
    speak = "from service.logs import *; configure('info', 'auto', 'engine'); logger.info('ready', model='big')"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", speak], stderr=theirs, env=environment(NO_COLOR="1"), check=True)
    os.close(theirs)
    text = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "ready" in text
    assert "model=big process=engine" in text
    assert "\x1b" not in text


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    speak = (
        "import logging, sys; from service import logs; logs.configure('info', 'json', 'a'); "
        "logs.logger.info('ours'); logging.warning('theirs'); sys.exit(78)"
    )
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", speak], stderr=full, env=environment()).returncode == 78
