"""`volo plan`, as people type it."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from cost_tables import table

from service.__main__ import main
from service.bench.figures import Figures
from service.bench.tables import kept
from service.plan.check import Comparison
from service.settings import Settings

DEMAND = "--costs costs.json --rate 500 --slo-ms 100 --seconds 2"


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Planning = Callable[[str], Ended]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Planning:
    """Runs the command in this process and a folder of its own, where there are an invented model's costs."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VOLO_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table(worker_cpu_seconds_per_picture=0.004).write(Path("costs.json"))

    def run(options: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["volo", "plan", *options.split()])
        with pytest.raises(SystemExit) as exit_:
            main()
        return Ended(int(exit_.value.code or 0), *capsys.readouterr())

    return run


def test_a_plan_is_a_table_and_a_line_for_each_kind_of_arrivals(plan: Planning) -> None:
    ended = plan(DEMAND)
    assert ended.returncode == 0, ended.stderr
    assert "invented in float32 on invented" in ended.stdout
    assert "500 requests a second, p99 under 100 ms" in ended.stdout
    assert "Poisson: 2 devices with 2 HTTP workers each will do" in ended.stdout
    assert "bursty: " in ended.stdout
    assert " a second requests wait too long for the device (busy: device " in ended.stdout
    assert all(title in ended.stdout for title in ("p50 ms", "device busy", "refused", "holds up to", "5-8"))


def test_programs_get_all_of_it_as_json(plan: Planning) -> None:
    ended = plan(f"{DEMAND} --json --arrivals poisson")
    figures = json.loads(ended.stdout)
    assert ended.returncode == 0
    assert figures["demand"]["rate"] == 500
    assert figures["costs"]["model"] == "invented"
    assert list(figures["plans"]) == ["Poisson"]
    found = figures["plans"]["Poisson"]
    assert (found["devices"], found["workers_each"], found["holds"], found["refused"]) == (2, 2, True, 0)
    assert 10 < found["p50_ms"] < found["p99_ms"] < 100
    assert 500 <= found["holds_up_to_rate"] < found["breaks"]["rate"]
    assert found["breaks"]["first"] == "device"
    assert (
        0 <= found["breaks"]["event_loop_busy"] < found["breaks"]["workers_busy"] < found["breaks"]["device_busy"] < 1
    )
    pictures = sum(int(size) * runs for size, runs in found["runs_by_size"].items())
    assert pictures == found["requests"]


def test_too_few_devices_are_told_by_the_exit_status(plan: Planning) -> None:
    ended = plan(f"{DEMAND} --devices 1 --arrivals poisson")
    assert ended.returncode == 1
    assert "Poisson: 1 device with 3 HTTP workers will not do" not in ended.stderr
    assert "will not do" in ended.stdout


def test_what_cannot_be_had_is_told_by_the_exit_status(plan: Planning) -> None:
    ended = plan("--costs costs.json --rate 500 --slo-ms 5 --seconds 1")
    assert ended.returncode == 1
    assert "Poisson: no number of devices keeps p99 under 5 ms" in ended.stdout
    assert (
        json.loads(plan("--costs costs.json --rate 500 --slo-ms 5 --seconds 1 --json").stdout)["plans"]["Poisson"]
        is None
    )


def test_few_requests_are_simulated_for_longer(plan: Planning) -> None:
    ended = plan("--costs costs.json --rate 5 --slo-ms 100 --seconds 1 --arrivals poisson --json")
    assert json.loads(ended.stdout)["plans"]["Poisson"]["requests"] > 900


def test_without_costs_it_says_how_to_measure_them(plan: Planning) -> None:
    ended = plan("--model volo_d3_224 --rate 20000 --slo-ms 100")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "volo: there are no measured costs for volo_d3_224; run `volo bench costs volo_d3_224` on the device. "
        "If that is another machine, let it write them with --out FILE, and name the file with --costs\n"
    )


def test_costs_that_were_measured_here_are_found_by_the_models_name(plan: Planning) -> None:
    table(model="volo_d3_224").write(kept("volo_d3_224"))
    ended = plan("--model volo_d3_224 --rate 500 --slo-ms 100 --seconds 2")
    assert ended.returncode == 0, ended.stderr
    assert "volo_d3_224 in float32 on invented" in ended.stdout


def test_costs_of_a_model_of_ones_own_are_found_by_its_file(plan: Planning) -> None:
    table(model="cats").write(kept("/weights/cats.safetensors"))
    ended = plan("--model cats.pth --rate 500 --slo-ms 100 --seconds 2")
    assert ended.returncode == 0, ended.stderr


def test_the_costs_of_another_model_are_not_taken(plan: Planning) -> None:
    ended = plan(f"{DEMAND} --model volo_d3_224")
    assert ended.returncode == 2
    assert "there are no measured costs for volo_d3_224; costs.json has those of invented; run" in ended.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no table of costs: "),
        ("{}", "is no table of costs: model: Field required"),
        ('{"model": 1}', "is no table of costs: model: "),
        ("\xff", "is no table of costs: "),
    ],
)
def test_a_file_that_is_no_table_is_told_in_a_line(plan: Planning, content: str | None, complaint: str) -> None:
    if content is not None:
        Path("bad.json").write_text(content, encoding="latin-1")
    ended = plan("--costs bad.json --rate 1 --slo-ms 1")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"volo: bad.json {complaint}" in ended.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "it needs --rate and --slo-ms, or --check"),
        ("--rate 0 --slo-ms 1", "must be above 0"),
        ("--rate x --slo-ms 1", "'x' is no number"),
        ("--rate 1 --slo-ms 1 --devices 0", "must be at least 1"),
        ("--rate 1 --slo-ms 1 --worker-busy 1", "must lie between 0 and 1"),
        ("--check --loads 0.5,1.5", "must lie between 0 and 1"),
        (
            "--costs costs.json --rate 1 --slo-ms 1 --burst-factor 20",
            "bursts of 20 times the mean rate",
        ),
        ("--costs costs.json --rate 1 --slo-ms 1 --queue-limit 0", "VOLO_QUEUE_LIMIT / --queue-limit"),
    ],
)
def test_what_is_mistyped_is_told_in_a_line(plan: Planning, options: str, complaint: str) -> None:
    ended = plan(options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert complaint in ended.stderr.splitlines()[-1]


def test_a_check_puts_the_same_load_on_a_service_and_into_the_simulation(
    plan: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = {1: 0.02, 2: 0.04}
    table(model="embedded", device="cpu", padded=False, seconds_by_batch_size=runs).write(Path("costs.json"))
    ended = plan("--costs costs.json --check --loads 0.2,0.4 --seconds 1")
    assert ended.returncode in (0, 1), ended.stderr  # how well they agree is up to this machine
    half, most = ended.stdout.splitlines()[-2:]
    assert half.split()[:2] == ["20%", "10.0"]
    assert most.split()[:2] == ["40%", "20.0"]
    assert most.split()[-1] == "none"


def test_a_check_can_do_without_the_device(plan: Planning) -> None:
    runs = {1: 0.02, 2: 0.03, 4: 0.04}
    table(model="embedded", ahead=1, seconds_by_batch_size=runs).write(Path("costs.json"))
    ended = plan("--costs costs.json --check --paced --loads 0.2 --seconds 1")
    assert ended.returncode in (0, 1), ended.stderr
    share, rate, _, measured_p50_ms, *_ = ended.stdout.splitlines()[-1].split()
    assert (share, rate) == ("20%", "20.0")
    assert float(measured_p50_ms) >= 20  # it has slept


@pytest.mark.parametrize(
    ("simulated_ms", "measured_ms", "agrees"),
    [(100, 100, True), (80, 100, True), (120, 100, True), (79, 100, False), (121, 100, False), (100, math.nan, False)],
)
def test_a_simulation_agrees_that_is_off_by_a_fifth_of_what_was_measured(
    simulated_ms: float, measured_ms: float, agrees: bool
) -> None:
    nothing: dict[str, Any] = dict.fromkeys((field.name for field in fields(Figures)), 0)
    measured = Figures(**nothing | {"p99_ms": measured_ms})
    assert Comparison(0.5, 1.0, 1.0, simulated_ms, 0.0, measured).agrees is agrees


@pytest.mark.parametrize(("second", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_of_a_check_says_whether_all_of_it_agrees(
    plan: Planning, monkeypatch: pytest.MonkeyPatch, second: bool, status: int
) -> None:
    compared = [SimpleNamespace(agrees=True), SimpleNamespace(agrees=second)]
    monkeypatch.setattr("service.plan.check.compare", lambda *_: compared)
    monkeypatch.setattr("service.plan.report.print_check", lambda *_: None)
    assert plan("--costs costs.json --check").returncode == status


def test_a_model_that_is_not_in_the_catalogue_cannot_be_paced(plan: Planning) -> None:
    ended = plan("--costs costs.json --check --paced")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "'invented' is neither a file nor a model" in ended.stderr


def test_a_check_of_what_cannot_be_served_is_told_in_a_line(plan: Planning) -> None:
    table(device="cpu").write(Path("costs.json"))
    ended = plan("--costs costs.json --check")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the service did not start: 'invented' is neither a file nor a model" in ended.stderr
