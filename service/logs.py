"""Logs: one JSON object a line for machines, readable lines on a terminal. All go to standard error."""

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger, Processor

logger: FilteringBoundLogger = structlog.get_logger("volo")


def configure(level: str, style: str, process: str) -> None:
    """Set this process's logs up.

    Args:
        level: the least that is logged.
        style: ``json``, ``text``, or ``auto`` for text on a terminal and JSON elsewhere.
        process: who speaks, such as ``worker 0``.
    """
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        lambda _, __, event: {**event, "process": process},
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)]
        if text
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_logging(level, [*shared, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last])


def _adopt_standard_logging(level: str, processors: list[Processor]) -> None:
    """Have uvicorn's and other libraries' warnings come out in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=processors))
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, logging.getLevelName(level.upper())), force=True)
