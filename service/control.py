"""How HTTP workers ask the supervisor to load a model anew: one line of JSON there and one back, over a unix socket."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from service.process import Refused

Reload = Callable[[str | None], Awaitable[list[str]]]
"""Loads the model of that name anew, or all of them: the names. It raises ``Refused`` if one cannot be."""


@asynccontextmanager
async def control(path: Path, reload: Reload) -> AsyncIterator[None]:
    """Listen at ``path`` and do what workers ask for."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply: dict[str, object]
        try:
            reply = {"reloaded": await reload(json.loads(await reader.readline())["reload"])}
        except Refused as refusal:
            reply = {"refused": str(refusal)}
        writer.write(json.dumps(reply).encode() + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    os.chmod(path, 0o600)
    try:
        yield
    finally:
        server.close()  # and not wait for it: a model that is being loaded shall not hold up the end


async def ask_to_reload(path: Path, name: str | None) -> list[str]:
    """Have the model of that name loaded anew, or all of them.

    Raises:
        Refused: it cannot be; the one before goes on.
    """
    try:
        line = await _ask(path, json.dumps({"reload": name}).encode() + b"\n")
    except OSError:
        line = b""
    if not line:
        raise Refused("the service is ending, or being started again")
    reply = json.loads(line)
    if "refused" in reply:
        raise Refused(reply["refused"])
    return list(reply["reloaded"])


async def _ask(path: Path, line: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(line)
        return await reader.readline()
    finally:
        writer.close()
