"""What is documented is what is done, and all of it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from calling import application, calling, listening, serving_engine
from pydantic import SecretStr
from running import PATIENCE_S, ROOT
from test_api import REFUSALS
from test_errors import KINDS

from service import apidoc, errors
from service.app import create_app
from service.problems import MEDIA_TYPE, STATUS, Problem
from service.settings import Settings

DOCUMENT = apidoc.contract()
OPEN = ("/health", "/metrics", "/ping", "/v2/health", "/samples", "/assets")
OF_NO_ROUTE = {
    errors.MalformedRequest,
    errors.HeadTooSlow,
    errors.HeadTooLarge,
    errors.ClientGone,
    errors.NoSuchPath,
    errors.WrongMethod,
}


def operations(document: dict[str, Any] = DOCUMENT) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def examples(operation: dict[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """The errors of an operation: status, code and what is answered."""
    for status, response in operation["responses"].items():
        for content in response["content"].values():
            for code, example in content.get("examples", {}).items():
                yield int(status), code, example["value"]


def test_every_error_is_documented_somewhere_under_its_status() -> None:
    told = {(code, status) for _, _, operation in operations() for status, code, _ in examples(operation)}
    assert told == {(kind.code, STATUS[kind]) for kind in set(KINDS) - OF_NO_ROUTE}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_an_example_of_its_own(kind: type[errors.ServiceError]) -> None:
    assert kind.example.endswith((".", ")"))
    assert [other for other in KINDS if other.example == kind.example] == [kind]


@pytest.mark.parametrize(("path", "method", "operation"), list(operations()))
def test_every_route_is_documented_whole(path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["tags"][0] in [tag["name"] for tag in DOCUMENT["tags"]]
    assert {"200", "406", "500"} <= operation["responses"].keys()
    for status, response in operation["responses"].items():
        assert response["description"] not in ("", "Successful Response"), status
        assert {"X-Request-ID", "Server-Timing"} <= response["headers"].keys()
        assert all("schema" in content for content in response["content"].values())
    for parameter in operation.get("parameters", []):
        assert parameter["description"], parameter["name"]
    for status, code, value in examples(operation):
        if "request_id" in value:
            told = Problem.model_validate(value, strict=True)
            assert (told.status, told.code) == (status, code)
            assert value in [each["value"] for each in _problems(operation, status).values()]
    assert "ValidationError" not in str(operation)


def _problems(operation: dict[str, Any], status: int) -> dict[str, Any]:
    found: dict[str, Any] = operation["responses"][str(status)]["content"][MEDIA_TYPE]["examples"]
    return found


def test_ids_are_unique_and_no_server_is_named() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)
    assert "servers" not in DOCUMENT
    assert "head" not in {method for _, method, _ in operations()}


def test_all_but_health_and_metrics_need_a_key_where_there_are_keys() -> None:
    for path, _, operation in operations():
        assert ("security" in operation) is ("401" in operation["responses"]) is not path.startswith(OPEN), path
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert {name for _, _, operation in operations() for each in operation.get("security", []) for name in each} == (
        schemes.keys()
    )


async def test_without_keys_none_are_documented() -> None:
    async with serving_engine() as engine, calling(application(engine)) as client:
        document = (await client.get("/openapi.json")).json()
    for _, _, operation in operations(document):
        assert "security" not in operation
        assert "401" not in operation["responses"]
    assert "securitySchemes" not in document["components"]
    assert "/admin/reload" not in document["paths"]


@pytest.mark.parametrize(("status", "code", "body"), REFUSALS.values(), ids=REFUSALS)
def test_every_refusal_of_a_picture_is_documented(status: int, code: str, body: dict[str, Any]) -> None:
    assert code in _problems(DOCUMENT["paths"]["/predict"]["post"], status)


def test_the_page_to_read_is_up_to_date() -> None:
    made = apidoc.page(DOCUMENT)
    assert (ROOT / "docs/api.md").read_text() == made, "run: python -m service.apidoc > docs/api.md"
    assert all(f"### {method.upper()} {path}\n" in made for path, method, _ in operations())
    assert all(f"`{kind.code}`" in made for kind in set(KINDS) - {errors.ClientGone})


async def test_schemathesis_finds_nothing() -> None:
    async def reload(name: str | None) -> list[str]:
        return [name or "embedded"]

    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    keys = {"api_keys": SecretStr("callers-key"), "admin_key": SecretStr("admins-key")}
    async with serving_engine() as engine:
        app = create_app(Settings(**{**defaults, **keys}), {"embedded": engine}, reload)
        async with listening(app) as port:
            ended = await asyncio.to_thread(
                subprocess.run,
                [
                    *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json"),
                    *("--generation-deterministic", "--max-examples=5", "--phases=examples,coverage,fuzzing"),
                    "--no-color",
                ],
                cwd=ROOT,
                env={**os.environ, "API_KEY": "admins-key", "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
    assert ended.returncode == 0, ended.stdout
    assert f"Tested: {len(list(operations()))}\n" in ended.stdout
