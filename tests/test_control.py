"""How a worker asks for a reload, and what it hears."""

import asyncio
from pathlib import Path

import pytest

from service.control import ask_to_reload, control
from service.process import Refused


async def test_what_is_asked_for_is_done_and_told(tmp_path: Path) -> None:
    asked: list[str | None] = []

    async def reload(name: str | None) -> list[str]:
        asked.append(name)
        return ["a", "b"] if name is None else [name]

    async with control(tmp_path / "control.sock", reload):
        assert await ask_to_reload(tmp_path / "control.sock", "b") == ["b"]
        assert await ask_to_reload(tmp_path / "control.sock", None) == ["a", "b"]
    assert asked == ["b", None]


async def test_a_refusal_arrives_with_its_reason(tmp_path: Path) -> None:
    async def refuse(name: str | None) -> list[str]:
        raise Refused("the file is torn")

    async with control(tmp_path / "control.sock", refuse):
        with pytest.raises(Refused, match="the file is torn"):
            await ask_to_reload(tmp_path / "control.sock", "b")


async def test_where_nobody_is_or_stays_to_do_it_that_is_a_refusal_too(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="ending"):
        await ask_to_reload(tmp_path / "control.sock", None)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(hang_up, tmp_path / "control.sock"):
        with pytest.raises(Refused, match="ending"):
            await ask_to_reload(tmp_path / "control.sock", None)
