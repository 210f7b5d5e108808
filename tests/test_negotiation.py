"""Methods and kinds of answers: every path says which it knows, and keeps to it."""

from collections.abc import AsyncIterator

import httpx
import pytest
from calling import application, calling, listening, outcomes, serving_engine
from running import CAT

from service.negotiation import accepts

PATHS = ["/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine)) as client:
        yield client


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("*/*", True),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/*", True),
        ("text/html, application/json;q=0.1", True),
        ("text/html,*/*;q=0.8", True),
        ("application/json;q=much", True),
        ("text/html", False),
        ("application/jsonl", False),
        ("application/json;q=0", False),
        ("application/json;q=0, */*", False),
        ("application/*;q=0, */*", False),
        ("application/problem+json", False),
        (";;,=", False),
        ("*", False),
    ],
)
def test_the_most_exact_range_that_fits_decides(accepted: str, taken: bool) -> None:
    assert accepts(accepted, "application/json") is taken


@pytest.mark.parametrize("accepted", [None, "", "*/*", "application/json", "text/html,application/*;q=0.1"])
async def test_who_accepts_what_there_is_gets_it(client: httpx.AsyncClient, accepted: str | None) -> None:
    client.headers.pop("accept")
    answer = await client.post(
        "/predict", content=CAT.read_bytes(), headers={} if accepted is None else {"accept": accepted}
    )
    assert answer.status_code == 200


async def test_who_accepts_nothing_that_there_is_is_refused_before_anything_is_read(client: httpx.AsyncClient) -> None:
    before = outcomes()
    answer = await client.post("/predict", content=b"no picture", headers={"accept": "image/png, text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "application/json" in answer.json()["detail"]
    assert outcomes() - before == {("/predict", "not_acceptable"): 1}


async def test_several_accept_headers_are_one(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health", headers=[("accept", "text/html"), ("accept", "application/json")])
    assert answer.status_code == 200


@pytest.mark.parametrize("path", PATHS)
async def test_head_says_what_get_would_say(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_has_no_body_over_a_real_connection() -> None:
    async with (
        serving_engine() as engine,
        listening(application(engine)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        head = await client.head("/health/live")
        get = await client.get("/health/live")  # over the same connection, where a body would be in the way
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] != "0"


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_is_tagged_for_caches(client: httpx.AsyncClient, path: str) -> None:
    assert "etag" not in (await client.get(path)).headers


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/predict", "OPTIONS, POST"), ("/health", "GET, HEAD, OPTIONS"), ("/metrics", "GET, HEAD, OPTIONS")],
)
async def test_options_tells_the_methods_and_another_method_is_refused_with_them(
    client: httpx.AsyncClient, path: str, methods: str
) -> None:
    told = await client.options(path)
    assert (told.status_code, told.headers["allow"], told.content) == (204, methods, b"")
    refused = await client.delete(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, methods)
    assert refused.json()["code"] == "method_not_allowed"


async def test_options_of_a_path_that_does_not_exist_are_not_found(client: httpx.AsyncClient) -> None:
    assert (await client.options("/nothing")).status_code == 404


async def test_routes_of_one_path_tell_their_methods_together() -> None:
    async with serving_engine() as engine:
        app = application(engine)
        app.add_api_route("/both", lambda: None, methods=["GET"])
        app.add_api_route("/both", lambda: None, methods=["PUT"])
        async with calling(app) as client:
            assert (await client.options("/both")).headers["allow"] == "GET, OPTIONS, PUT"
