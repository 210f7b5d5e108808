"""One generator's client: sends pictures to one address, and judges what comes back."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

_IDLE_S = 3.0
"""A connection not used for so long is closed; servers do it after five seconds and more, and the request that meets
with that would look like an error."""
_BOUNDARY = "volo-bench-7ohgai8pheir0shu"


@dataclass(frozen=True)
class Target:
    """Where requests go, and what they are.

    Attributes:
        bodies: sent in turn, as they are.
        expected: what a good answer contains.
        timeout_s: an answer that takes longer is an error.
    """

    url: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: bytes = b""
    timeout_s: float = 30.0


def as_form(picture: bytes, name: str) -> bytes:
    """A form with a picture for its one field; ``FORM_TYPE`` is its type."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="picture.jpg"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()


FORM_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


class Client:
    """Sends one target's bodies in turn."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._post = session.post
        self._url = URL(target.url)
        self._bodies = itertools.cycle(target.bodies)
        self._expected = target.expected

    async def send(self) -> str:
        """Send the next body: "ok", or the kind of error."""
        try:
            async with self._post(self._url, data=next(self._bodies), allow_redirects=False) as reply:
                answer = await reply.read()
        except TimeoutError:  # aiohttp's are of this kind too
            return "timeout"
        except (aiohttp.ClientError, OSError):
            return "connection"
        return verdict(reply.status, answer, self._expected)


def verdict(status: int, answer: bytes, expected: bytes) -> str:
    """ "ok", or the kind of error: "503 overloaded", say, where the answer has a code (RFC 9457), otherwise "503"."""
    if status == 200:
        return "ok" if expected in answer else "unexpected answer"
    try:
        problem: Any = json.loads(answer)
        return f"{status} {problem['code']}"
    except (ValueError, TypeError, KeyError):
        return str(status)


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Client]:
    """A client with as many connections as there are requests under way, each used again."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        headers=target.headers,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    ) as session:
        yield Client(session, target)
