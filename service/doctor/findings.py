"""What a check finds, and how checks are made: none can hang, and one that breaks is a finding of its own."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue


class State(StrEnum):
    WELL = "well"
    WARNING = "warning"
    """It works, and could do better, or may not for long."""
    FAILED = "failed"
    """It does not work like this."""


@dataclass(frozen=True)
class Finding:
    """What was found of a subject, and what to do about it unless it is well."""

    subject: str
    state: State
    found: str
    advice: str = ""


def well(subject: str, found: str) -> Finding:
    return Finding(subject, State.WELL, found)


def warning(subject: str, found: str, advice: str) -> Finding:
    return Finding(subject, State.WARNING, found, advice)


def failed(subject: str, found: str, advice: str) -> Finding:
    return Finding(subject, State.FAILED, found, advice)


@dataclass(frozen=True)
class Check:
    """Looks at a subject, for so many seconds at most."""

    subject: str
    look: Callable[[], Iterable[Finding]]
    limit_s: float = 20.0

    def findings(self) -> list[Finding]:
        """What it finds; that it broke or took too long, if it did."""
        found: SimpleQueue[list[Finding]] = SimpleQueue()
        # not a pool's, which would be waited for in the end
        threading.Thread(target=lambda: found.put(self._looked()), daemon=True).start()
        try:
            return found.get(timeout=self.limit_s)
        except Empty:
            why = f"no answer within {self.limit_s:.0f} s"
            return [failed(self.subject, why, "Something hangs: see what it waits for.")]

    def _looked(self) -> list[Finding]:
        try:
            return list(self.look())
        except Exception as error:
            return [failed(self.subject, f"the check itself failed: {error!r}", "Please report this.")]
