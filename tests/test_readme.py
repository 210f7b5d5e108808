"""What the README shows works as it stands there."""

import asyncio
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from calling import application, listening, serving_engine
from running import CAT, ROOT, environment

import service

README = (ROOT / "README.md").read_text()
PREDICT = README.partition("\n## Predict\n")[2].partition("\n## ")[0]
SNIPPETS = re.findall(r"```python\n(.*?)```", PREDICT, re.DOTALL)
COMMANDS = [line for line in re.findall(r"^\$ (curl .*)$", PREDICT, re.MULTILINE) if "localhost:8000" in line]


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with serving_engine() as engine, listening(application(engine)) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands: at the repository's root."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


async def output_of(folder: Path, *command: str) -> str:
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_there_are_examples_of_each_protocol() -> None:
    assert ["tritonclient" in one for one in SNIPPETS] == [False, True, False]
    assert {"/predictions/embedded", "/embed", "/predict"} <= {
        re.split(r"['?]", one.partition("localhost:8000")[2])[0] for one in COMMANDS
    }


@pytest.mark.parametrize("snippet", SNIPPETS)
async def test_the_examples_in_python_name_the_cat(address: str, folder: Path, snippet: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        (cat, *_) = (await client.post("/predict", content=CAT.read_bytes())).json()["predictions"]
    said = await output_of(folder, sys.executable, "-c", snippet.replace("localhost:8000", address))
    assert cat["label"] in said


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
@pytest.mark.parametrize("command", COMMANDS)
async def test_the_commands_are_answered(address: str, folder: Path, command: str) -> None:
    await output_of(folder, "sh", "-c", f"{command.replace('localhost:8000', address)} --silent --show-error --fail")


def test_the_map_of_the_service_has_every_module_once() -> None:
    rooms = re.findall(r"^    ([\w,; ]+?)  ", service.__doc__ or "", re.MULTILINE)
    named = [name for room in rooms for name in re.findall(r"\w+", room)]
    named += re.findall(r"\(``(\w+)``\)", service.__doc__ or "")
    assert sorted(named) == sorted(module.name for module in pkgutil.iter_modules(service.__path__))
