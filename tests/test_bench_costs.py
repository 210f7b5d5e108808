"""`volo bench costs`: what a model costs here, in the form that `volo plan` reads."""

import sys
import time
from pathlib import Path

import pytest
from cost_tables import table

from service.__main__ import main
from service.bench.costs import spread
from service.bench.cpu import machine_seconds
from service.bench.tables import CostTable, UnusableTable, kept
from service.settings import Settings, cores


def test_costs_are_measured_and_kept_where_plans_look(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VOLO_{name.upper()}", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "volo/costs/embedded.json"
    options = {"--precision": "float32", "--max-batch": "2", "--seconds": "0.2"}
    command = ["volo", "bench", "costs", "embedded", *(part for option in options.items() for part in option)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        main()
    shown = capfd.readouterr()
    assert not exit_.value.code, shown.err
    assert shown.err == ""  # the worker that was measured has kept its log to itself
    assert shown.out.startswith("embedded in float32 on")
    assert f"It is kept in {file}, where `volo plan --model embedded` finds it." in shown.out
    costs = CostTable.read(file)
    assert (costs.model, costs.precision, costs.device, costs.padded) == ("embedded", "float32", "cpu", False)
    assert (costs.lanes, costs.ahead) == (cores(), 0)
    assert set(costs.seconds_by_batch_size) == set(costs.alone_seconds_by_batch_size) <= {1, 2}
    assert len(costs.spread) == 20
    assert list(costs.spread) == sorted(costs.spread)
    assert 0 <= costs.engine_cpu_seconds_per_picture < costs.worker_cpu_seconds_per_picture < 0.1
    assert costs.command == " ".join(command)
    assert costs.versions["torch"]


def test_tables_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert kept("volo_d1_224") == tmp_path / ".cache/volo/costs/volo_d1_224.json"


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    costs = table(spread=(0.9, 1.1), alone_seconds_by_batch_size={1: 0.02})
    costs.write(tmp_path / "costs.json")
    assert CostTable.read(tmp_path / "costs.json") == costs


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ('"lanes": 0', "lanes: "),
        ('"seconds_by_batch_size": {}', "seconds_by_batch_size: "),
        ('"seconds_by_batch_size": {"0": 1.0}', "seconds_by_batch_size.0"),
        ('"seconds_by_batch_size": {"1": -1.0}', "seconds_by_batch_size.1"),
        ('"spread": []', "spread: "),
        ('"device": "tpu"', "device: "),
        ('"more": 1', "more: "),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, changes: str, complaint: str) -> None:
    file = tmp_path / "costs.json"
    table().write(file)
    file.write_text(file.read_text().rstrip().removesuffix("}") + f", {changes}}}")  # the last of two counts
    with pytest.raises(UnusableTable, match=f"costs.json is no table of costs: {complaint}"):
        CostTable.read(file)


def test_the_machine_uses_at_least_what_we_use() -> None:
    before_s, ours_s = machine_seconds(), time.process_time()
    while time.process_time() < ours_s + 0.1:
        sum(range(1000))
    assert machine_seconds() - before_s >= 0.05  # the kernel counts in ticks


def test_the_spread_keeps_the_mean_and_knows_no_size() -> None:
    short, long = [1.0] * 60 + [3.0] * 20, [100.0] * 60 + [300.0] * 20
    assert spread([short, long]) == (1.0,) * 15 + (3.0,) * 5


def test_a_few_runs_are_a_spread_too() -> None:
    assert spread([[1.0, 2.0, 4.0]]) == (0.5, 1.0, 2.0)


def test_a_gpu_can_do_what_its_largest_runs_give_or_its_engine_carries() -> None:
    assert table().capacity == pytest.approx(8 / 0.024)
    assert table(engine_cpu_seconds_per_picture=0.01).capacity == pytest.approx(100)


def test_a_processor_does_the_workers_part_too() -> None:
    costs = table(device="cpu", lanes=2, worker_cpu_seconds_per_picture=0.004, engine_cpu_seconds_per_picture=0.001)
    assert costs.capacity == pytest.approx(2 / (0.003 + 0.004 + 0.001))
