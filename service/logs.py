"""Logs: one JSON object a line for machines, readable lines on a terminal. All go to standard error."""

import io
import json
import logging
import os
import re
import sys
from typing import Any, TextIO

import orjson
import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

logger: FilteringBoundLogger = structlog.get_logger("volo")

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_IN_TRACEBACKS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class _StandardError(io.TextIOWrapper):
    """Unbuffered, and of no harm: a line that cannot be written, because the disk is full say, is lost."""

    def __init__(self) -> None:
        super().__init__(
            io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True
        )  # as with -u

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return 0


def configure(level: str, style: str, process: str) -> None:
    """Set this process's logs up, those of other libraries too.

    Args:
        level: the least that is logged.
        style: ``json``, ``text``, or ``auto`` for text on a terminal and JSON elsewhere.
        process: who speaks, such as ``worker 0``.
    """
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        lambda _, __, event: {**event, "process": process},
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text),
        structlog.processors.format_exc_info,
        *(_text() if text else [structlog.processors.JSONRenderer(_json)]),
    ]
    stream = _StandardError()
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),  # a line is one write: processes share the terminal
    )
    _adopt_standard_logging(level, processors, stream)


def _json(event: EventDict, default: Any) -> str:
    """One line of ASCII."""
    try:
        line = orjson.dumps(event, default, orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a surrogate pair, or a number beyond 64 bits
        return json.dumps(event, default=default)
    return line if line.isascii() else json.dumps(event, default=default)  # there are controls beyond ASCII too


def _text() -> list[Processor]:
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return [
        _escape_controls,
        ConsoleRenderer(colors=colors, pad_event_to=24, sort_keys=False, exception_formatter=plain_traceback),
    ]


def _escape_controls(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What a stranger can bring into a log must not move the cursor, nor look like a line of its own."""

    def harmless(key: str, value: object) -> object:
        if not isinstance(value, str):
            return value
        controls = _CONTROLS_IN_TRACEBACKS if key == "exception" else _CONTROLS
        return controls.sub(lambda found: repr(found[0])[1:-1], value)

    return {key: harmless(key, value) for key, value in event.items()}


def _adopt_standard_logging(level: str, processors: list[Processor], stream: TextIO) -> None:
    """Have uvicorn's and other libraries' warnings come out in the same form."""
    form = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, logging.getLevelName(level.upper())), force=True)
    logging.captureWarnings(True)
    for library in ("PIL", "python_multipart"):  # which hold callers' errors for ours
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # nor did we forget to answer: the caller had left, and uvicorn did not know it yet
    logging.getLogger("uvicorn.error").addFilter(lambda record: "ASGI callable returned" not in record.getMessage())
