"""The application: health, the one table of errors, faults that nobody foresaw, and its life without a supervisor."""

import signal
from pathlib import Path

import pytest
from calling import application, calling, outcomes, serving_engine
from running import CAT, PATIENCE_S, alive, serving, until

from service import errors
from service.link import Link


async def test_before_there_is_an_engine_it_is_live_but_not_ready_and_says_why(tmp_path: Path) -> None:
    async with calling(application(tmp_path / "engine.sock"), ready=False) as client:
        assert (await client.get("/health/live")).json()["status"] == "live"
        for path in ("/health", "/health/ready"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert answer.json()["status"] == "not ready"
            assert answer.json()["reasons"] == ["the engine is starting"]
        refused = await client.post("/predict", content=CAT.read_bytes())
        assert (refused.status_code, refused.json()["code"]) == (503, "engine_unavailable")
        assert int(refused.headers["retry-after"]) >= 1


async def test_an_engine_that_is_there_is_known_before_anybody_asks() -> None:
    async with serving_engine() as engine, calling(application(engine), ready=False) as client:
        assert (await client.post("/predict", content=CAT.read_bytes())).status_code == 200


async def test_ready_it_says_what_it_serves() -> None:
    async with serving_engine() as engine, calling(application(engine)) as client:
        answer = await client.get("/health")
        assert answer.status_code == 200
        assert answer.json()["status"] == "ready"
        assert answer.json()["reasons"] == []
        assert answer.json()["models"] == [{"name": "embedded", "device": "cpu", "ready": True, "reasons": []}]


async def test_while_it_drains_it_is_not_ready_but_answers() -> None:
    async with serving_engine() as engine:
        app = application(engine)
        async with calling(app) as client:
            app.state.models.draining = True
            answer = await client.get("/health/ready")
            assert (answer.status_code, answer.json()["reasons"]) == (503, ["the service is shutting down"])
            before = outcomes()
            for path in ("/health", "/v2/health/ready", "/v2/models/embedded/ready", "/ping"):
                assert (await client.get(path)).status_code == 503, path
            assert {outcome for _, outcome in outcomes() - before} == {"not_ready"}
            for path in ("/health/live", "/v2/health/live"):
                assert (await client.get(path)).status_code == 200, path
            assert (await client.post("/predict", content=CAT.read_bytes())).status_code == 200


async def test_where_engines_die_again_and_again_it_is_not_live_so_that_it_is_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving_engine() as engine, calling(application(engine)) as client:
        monkeypatch.setattr(Link, "hopeless", True)
        answer = await client.get("/health/live")
        assert (answer.status_code, answer.json()["status"]) == (503, "not live")
        assert answer.json()["reasons"] == ["embedded: engines die again and again"]
        answer = await client.get("/v2/health/live")
        assert (answer.status_code, answer.json()) == (503, {"live": False})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "not_found"), ("GET", "/predict", 405, "method_not_allowed")],
)
async def test_wrong_paths_and_methods_are_problems_too(
    tmp_path: Path, method: str, path: str, status: int, code: str
) -> None:
    async with calling(application(tmp_path / "engine.sock"), ready=False) as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert answer.headers.get("allow") == ("OPTIONS, POST" if status == 405 else None)


async def test_what_nobody_foresaw_is_a_problem_that_tells_nothing_internal(tmp_path: Path) -> None:
    def broken() -> None:
        raise ZeroDivisionError("the secret recipe")

    app = application(tmp_path / "engine.sock")
    app.add_api_route("/broken", broken)
    before = outcomes()
    async with calling(app, ready=False) as client:
        answer = await client.get("/broken", headers={"x-request-id": "abc"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["request_id"]) == ("internal_error", "abc")
    assert answer.headers["x-request-id"] == "abc"
    assert "server-timing" in answer.headers
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text
    assert outcomes() - before == {("/broken", "internal_error"): 1}


async def test_metrics_are_in_prometheus_format_and_name_the_stages() -> None:
    async with serving_engine() as engine, calling(application(engine)) as client:
        await client.post("/predict", content=CAT.read_bytes())
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    for stage in ("receive", "decode", "queue", "device", "respond"):
        assert f'volo_stage_seconds_count{{model="embedded",stage="{stage}"}}' in answer.text
    assert 'volo_request_seconds_bucket{endpoint="/predict",le="0.001"}' in answer.text


@pytest.mark.parametrize("kind", [errors.Overloaded, errors.EngineUnavailable])
async def test_what_may_be_tried_again_says_when_in_whole_seconds(
    tmp_path: Path, kind: type[errors.RetryableError]
) -> None:
    def refuse() -> None:
        raise kind("Not now.", 2.1)

    app = application(tmp_path / "engine.sock")
    app.add_api_route("/refuse", refuse)
    async with calling(app, ready=False) as client:
        assert (await client.get("/refuse")).headers["retry-after"] == "3"


def test_uvicorn_alone_runs_it_with_an_engine_of_its_own_and_ends_it_cleanly(tmp_path: Path) -> None:
    with serving(tmp_path, "uvicorn", "--factory", "service.app:create_app", "--port", "0") as service:
        until(service.is_ready)
        assert service.predict().status_code == 200
        (engine,) = service.children.values()
        service.process.terminate()
        assert service.process.wait(PATIENCE_S) == -signal.SIGTERM  # as uvicorn has it, when all is done
        assert "Application shutdown complete" in service.text
        assert "Traceback" not in service.text
    assert not alive(engine)
    assert list((tmp_path / "tmp").iterdir()) == []
