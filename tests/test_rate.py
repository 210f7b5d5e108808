"""Each caller has its bucket, however many callers and processes there are."""

import os
from pathlib import Path

import httpx
import pytest
from calling import application, calling, serving_engine
from hypothesis import given
from hypothesis import settings as reproducible
from hypothesis import strategies as st
from pydantic import SecretStr
from running import serving, until

from service.buckets import SETS, WAYS, Buckets


def buckets(rate: float = 10.0, burst: int = 3) -> Buckets:
    return Buckets(rate, burst, Buckets.create())


def test_a_full_bucket_has_its_burst_and_fills_at_its_rate() -> None:
    mine = buckets()
    assert [mine.take("me", 100.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    assert mine.take("me", 100.05) == pytest.approx(0.05)
    assert mine.take("me", 100.1) == 0
    assert mine.take("me", 100.1) > 0
    assert mine.take("you", 100.1) == 0


@reproducible(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.floats(1, 100), st.integers(1, 20))
def test_nobody_gets_more_than_the_burst_and_the_rate(pauses_s: list[float], rate: float, burst: int) -> None:
    mine, now, let_in = buckets(rate, burst), 1000.0, []
    for pause_s in pauses_s:
        now += pause_s
        if mine.take("me", now) == 0:
            let_in.append(now)
    for first, begin_s in enumerate(let_in):
        for last, end_s in enumerate(let_in[first:], 1):
            assert last <= burst + (end_s - begin_s) * rate + 1e-6


def test_whoever_comes_when_it_was_told_to_is_let_in() -> None:
    mine, now = buckets(), 1000.0
    for _ in range(50):
        while wait_s := mine.take("me", now):
            now += wait_s
    assert now == pytest.approx(1000 + 47 * 0.1)


def test_processes_count_together() -> None:
    fd = Buckets.create()
    one, other = Buckets(10, 3, fd), Buckets(10, 3, os.dup(fd))
    assert [one.take("me", 5.0), other.take("me", 5.0), one.take("me", 5.0)] == [0, 0, 0]
    assert other.take("me", 5.0) > 0


def test_a_million_callers_take_no_more_memory_and_forget_nobody_who_has_just_been() -> None:
    fd = Buckets.create()
    mine = Buckets(1, 1, fd)
    size = os.fstat(fd).st_size
    for number in range(2 * SETS):
        assert mine.take(str(number), 100 + number / SETS) == 0
    assert mine.take(str(2 * SETS - 1), 102.0) > 0
    assert os.fstat(fd).st_size == size < 24 * SETS * WAYS


async def test_who_sends_too_many_is_told_when_to_come_back_and_probes_are_free() -> None:
    async with (
        serving_engine() as engine,
        calling(application(engine, rate_limit=0.001, rate_burst=2)) as client,
    ):
        answers = [await client.get("/nothing") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [404, 404, 429]
        assert answers[2].json()["code"] == "rate_limited"
        assert int(answers[2].headers["retry-after"]) > 900
        refused = await client.get("/v2/models/embedded")  # in that protocol's words
        assert (refused.status_code, refused.json().keys()) == (429, {"error"})
        assert int(refused.headers["retry-after"]) > 900
        for path in ("/health/ready", "/metrics", "/"):
            assert (await client.get(path)).status_code == 200


async def test_callers_with_keys_are_told_apart_by_these_and_by_no_other_that_they_make_up() -> None:
    keys = {"api_keys": SecretStr("one,other"), "rate_limit": 0.001, "rate_burst": 1}
    async with serving_engine() as engine, calling(application(engine, **keys)) as client:

        async def ask(key: str, made_up: str = "") -> int:
            headers = {"x-api-key": key, "authorization": f"Bearer {made_up}"}
            return (await client.get("/v2/models/embedded", headers=headers)).status_code

        assert [await ask("one"), await ask("one", "1"), await ask("one", "2")] == [200, 429, 429]
        assert [await ask("other"), await ask("neither")] == [200, 401]


def test_workers_count_together_and_believe_only_trusted_proxies(tmp_path: Path) -> None:
    settings = {"VOLO_WORKERS": "2", "VOLO_RATE_LIMIT": "0.001", "VOLO_RATE_BURST": "3"}

    def ask(url: str, address: str) -> int:
        return httpx.get(f"{url}/v2/models/embedded", headers={"x-forwarded-for": address}).status_code

    with serving(tmp_path / "strangers", **settings) as service:
        until(service.is_ready)
        assert sorted(ask(service.url, f"192.0.2.{number}") for number in range(6)) == [200] * 3 + [429] * 3
    with serving(tmp_path / "trusted", VOLO_TRUSTED_PROXIES="127.0.0.1", **settings) as service:
        until(service.is_ready)
        assert [ask(service.url, f"192.0.2.{number}") for number in range(6)] == [200] * 6
        assert sorted(ask(service.url, "192.0.2.99") for _ in range(6)) == [200] * 3 + [429] * 3
        assert sorted(ask(service.url, f"2001:db8::{number}") for number in range(6)) == [200] * 3 + [429] * 3
        assert [ask(service.url, f"::ffff:192.0.2.{number}") for number in range(20, 26)] == [200] * 6
        assert [ask(service.url, odd) for odd in ("a:b", "unknown:x", "::zz", "[::1", "_hidden")] == [200] * 5
