"""Rules and alerts ask for what is exported, fire when they should, and are explained."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from running import ROOT
from test_metrics import documented

from service.app import create_app
from service.problems import STATUS
from service.settings import Settings

FOLDER = ROOT / "deploy/prometheus"
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus' promtool")


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules" / f"{name}.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


CASES = sorted((FOLDER / "tests").glob("*.yml"))
ALERTS, RECORDED = rules("alerts"), rules("recording")
EXPRESSIONS = [rule["expr"] for rule in ALERTS + RECORDED]


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_configuration_and_its_rules_are_sound() -> None:
    promtool("check", "config", "prometheus.yml")


def test_what_it_scrapes_are_services_of_the_compose_file() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    scraped = {job["job_name"]: job for job in jobs}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert scraped["volo"]["static_configs"] == [{"targets": [f"volo:{Settings.model_fields['port'].default}"]}]
    (cards,) = scraped["dcgm"]["dns_sd_configs"]  # looked up, for not every profile has them
    assert set(cards["names"]) <= set(services)


@needs_promtool
def test_alerts_fire_when_they_should_and_are_silent_when_not() -> None:
    promtool("test", "rules", *map(str, CASES))


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_every_alert_has_a_case_that_fires_and_one_that_stays_silent(alert: str) -> None:
    tests = [test for file in CASES for test in yaml.safe_load(file.read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == alert]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_how_grave_it_is_and_has_its_paragraph(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
    assert f"\n### {alert['alert']}\n" in (ROOT / "docs/operations.md").read_text()


def test_they_ask_for_metrics_that_there_are_and_labels_that_these_have() -> None:
    exported, recorded = documented(), {rule["record"] for rule in RECORDED}
    for expression in EXPRESSIONS:
        assert set(re.findall(r"\bvolo:\w+:\w+", expression)) <= recorded
        for name, selected in re.findall(r"\b(volo_\w+)(?:\{([^}]*)\})?", expression):
            base = re.sub(r"_(bucket|count|sum)$", "", name) if name not in exported else name
            labels = set(re.findall(r"(\w+)=", selected)) - {"le"}
            assert labels <= exported[base][1]


def test_errors_are_what_is_answered_with_5xx_and_nothing_else() -> None:
    (asked,) = {each for expression in EXPRESSIONS for each in re.findall(r'outcome=~"([^"]*)"', expression)}
    assert set(asked.split("|")) == {kind.code for kind, status in STATUS.items() if status >= 500}


def test_requests_are_those_that_bring_a_picture() -> None:
    asked = {each for expression in EXPRESSIONS for each in re.findall(r'endpoint=~"([^"]*)"', expression)}
    bring = {
        route.path  # type: ignore[attr-defined]
        for route in create_app(Settings(admin_key="a", model="embedded")).routes
        if "POST" in route.methods and route.path not in ("/admin/reload", "/v2/repository/index")  # type: ignore[attr-defined]
    }
    paths = {route.path for route in create_app(Settings(admin_key="a")).routes}  # type: ignore[attr-defined]
    soon, every = sorted(asked, key=lambda pattern: sum(bool(re.fullmatch(pattern, path)) for path in paths))
    assert {path for path in paths if re.fullmatch(every, path)} == bring
    assert {path for path in paths if re.fullmatch(soon, path)} == bring - {"/predict/batch"}
