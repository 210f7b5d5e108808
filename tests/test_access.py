"""Who has no key is refused everywhere but where it is open, and no key is ever told."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from calling import application, calling, outcomes, serving_engine
from pydantic import SecretStr, ValidationError
from running import CAT, serving, until
from structlog.testing import capture_logs

from service.access import Keys
from service.app import create_app
from service.process import Refused
from service.settings import Settings

KEYS = SecretStr("first-key, second-key")
ADMIN = SecretStr("admin-key")
BEARER = {"authorization": "Bearer first-key"}


@asynccontextmanager
async def caller(tmp_path: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has these settings and no engine."""
    async with calling(application(tmp_path / "engine.sock", **settings), ready=False) as client:
        yield client


def headers(*pairs: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in pairs]


@pytest.mark.parametrize(
    "shown",
    [
        [("authorization", "Bearer first-key")],
        [("authorization", "bearer  second-key ")],
        [("x-api-key", "second-key")],
        [("authorization", "Bearer of-another-service"), ("x-api-key", "first-key")],
    ],
)
def test_a_key_is_taken_in_either_header(shown: list[tuple[str, str]]) -> None:
    assert Keys("first-key", "second-key").admit(headers(*shown))


@pytest.mark.parametrize(
    "shown",
    [
        [],
        [("x-api-key", "")],
        [("x-api-key", "first")],
        [("x-api-key", "first-key-and-more")],
        [("x-api-key", "First-Key")],
        [("x-api-key", "first-key,second-key")],
        [("x-api-key", "sch\u00f6n")],
        [("authorization", "first-key")],
        [("authorization", "Bearer")],
        [("authorization", "Basic first-key")],
        [("cookie", "first-key")],
    ],
)
def test_nothing_else_is(shown: list[tuple[str, str]]) -> None:
    assert not Keys("first-key", "second-key").admit(headers(*shown))


def test_without_keys_nothing_is_admitted() -> None:
    assert not Keys().admit(headers(("x-api-key", "")))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("GET", "/predict"),
        ("OPTIONS", "/predict"),
        ("GET", "/nothing"),
        ("GET", "/health/../predict"),
        ("GET", "/health/"),
        ("POST", "/admin/reload"),
    ],
)
async def test_without_a_key_there_is_one_answer_to_everything(tmp_path: Path, method: str, path: str) -> None:
    before = outcomes()
    async with caller(tmp_path, api_keys=KEYS, admin_key=ADMIN) as client:
        answer = await client.request(method, path, headers={"x-request-id": "mine"})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (answer.json()["code"], answer.json()["request_id"]) == ("unauthorized", "mine")
    assert outcomes() - before == {("unmatched", "unauthorized"): 1}


async def test_with_a_key_it_is_as_if_there_were_none() -> None:
    async with serving_engine() as engine, calling(application(engine, api_keys=KEYS)) as client:
        assert (await client.post("/predict", content=CAT.read_bytes(), headers=BEARER)).status_code == 200
        assert (await client.get("/predict", headers=BEARER)).status_code == 405
        assert (await client.get("/nothing", headers={"x-api-key": "second-key"})).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/health/live", "/metrics"])
async def test_probes_are_open_unless_they_are_set_to_need_a_key(tmp_path: Path, path: str) -> None:
    async with caller(tmp_path, api_keys=KEYS) as client:
        assert (await client.get(path)).status_code != 401
    async with caller(tmp_path, api_keys=KEYS, probes_need_key=True) as client:
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers=BEARER)).status_code != 401


@pytest.mark.parametrize("path", ["/", "/page.js", "/samples/cat.jpg", "/openapi.json"])
async def test_the_page_and_the_documentation_are_open(tmp_path: Path, path: str) -> None:
    async with caller(tmp_path, api_keys=KEYS, probes_need_key=True) as client:
        assert (await client.get(path)).status_code == 200


async def test_without_an_admin_key_there_is_no_admin(tmp_path: Path) -> None:
    async with caller(tmp_path) as client:
        assert (await client.post("/admin/reload")).status_code == 404


@pytest.mark.parametrize("keys", ["", "first-key"])
async def test_the_admin_needs_the_admins_key_and_that_alone(tmp_path: Path, keys: str) -> None:
    reloaded: list[str | None] = []

    async def reload(name: str | None) -> list[str]:
        reloaded.append(name)
        return ["embedded"]

    settings = Settings(api_keys=SecretStr(keys), admin_key=ADMIN)
    app = create_app(settings, {"embedded": tmp_path / "engine.sock"}, reload)
    async with calling(app, ready=False) as client:
        for shown in ({}, {"x-api-key": "first-key"}, {"x-api-key": ""}):
            assert (await client.post("/admin/reload", headers=shown)).status_code == 401
        assert reloaded == []
        assert (await client.post("/admin/reload", headers={"x-api-key": "admin-key"})).status_code == 200
    assert reloaded == [None]


async def test_a_reload_that_is_refused_says_why_in_a_sentence(tmp_path: Path) -> None:
    async def refuse(name: str | None) -> list[str]:
        raise Refused("cats: the file is torn")

    app = create_app(Settings(admin_key=ADMIN), {"embedded": tmp_path / "engine.sock"}, refuse)
    async with calling(app, ready=False) as client:
        answer = await client.post("/admin/reload", headers={"x-api-key": "admin-key"})
    assert answer.status_code == 409
    assert answer.json()["detail"] == "cats: the file is torn. The weights before it go on."


async def test_other_web_sites_may_ask_only_if_they_are_named(tmp_path: Path) -> None:
    origin = {"origin": "https://example.org"}
    async with caller(tmp_path) as client:
        assert "access-control-allow-origin" not in (await client.get("/health/live", headers=origin)).headers
    async with caller(tmp_path, cors_origins="https://example.com,https://example.org", api_keys=KEYS) as client:
        answer = await client.get("/health/live", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        stranger = await client.get("/health/live", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        refused = await client.post("/predict", headers=origin)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://example.org")


async def test_a_browser_asks_for_leave_without_a_key(tmp_path: Path) -> None:
    asking = {
        "origin": "https://example.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key,content-type",
    }
    async with caller(tmp_path, cors_origins="*", api_keys=KEYS) as client:
        answer = await client.options("/predict", headers=asking)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "x-api-key,content-type"
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("name", ["api_keys", "admin_key"])
@pytest.mark.parametrize("key", ["visible\x1b", "zwei,,eins", " , ", "schl\u00fcssel"])
def test_a_key_that_nobody_could_show_is_refused_and_not_told(name: str, key: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate({name: key})
    assert refusal.value.errors()[0]["loc"] == (name,)
    assert key not in str(refusal.value)


@pytest.mark.parametrize("origins", ["example.org", "https://example.org/", "https://a.org, https://b.org", "*,*"])
def test_an_origin_that_no_browser_would_send_is_refused(origins: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(cors_origins=origins)


def test_keys_do_not_show_but_reach_our_own_processes() -> None:
    settings = Settings(api_keys=KEYS, admin_key=ADMIN)
    for shown in (repr(settings), str(settings), str(settings.model_dump())):
        assert "first-key" not in shown
        assert "admin-key" not in shown
    orders = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert Settings.model_validate(orders) == settings
    assert Settings.model_validate(orders).keys == ["first-key", "second-key"]


async def test_keys_are_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with capture_logs() as logged, caplog.at_level(logging.DEBUG):
        async with caller(tmp_path, api_keys=KEYS) as client:
            await client.post("/predict", headers=BEARER)
            await client.post("/predict", headers={"x-api-key": "wrong-key"})
    assert len(logged) >= 2
    assert "-key" not in f"{logged}{caplog.text}".replace("x-api-key", "")


def test_a_running_service_takes_keys_and_tells_them_in_no_log_and_no_title(tmp_path: Path) -> None:
    with serving(tmp_path, VOLO_API_KEYS="k3y-of-callers", VOLO_ADMIN_KEY="k3y-of-admins") as service:
        until(service.is_ready)
        assert service.predict().status_code == 401
        answer = httpx.post(
            f"{service.url}/predict", content=CAT.read_bytes(), headers={"x-api-key": "k3y-of-callers"}, timeout=60
        )
        assert answer.status_code == 200
        commands = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in service.children.values())
        assert "k3y" not in f"{service.text}{commands}"
