"""What `volo plan` has found out: tables for people, and JSON for their programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from service.bench.report import milliseconds, rate, share, warn
from service.bench.tables import CostTable
from service.plan.check import TOLERANCE, Comparison
from service.plan.search import Demand, Plan
from service.plan.simulation import Outcome
from service.terminal import print_table

_QUIET_CORES = 0.2
"""What other programs may take while something is measured."""

Plans = Mapping[str, Plan | None]
"""For each kind of arrivals, its plan; None if there is none that holds."""


def print_plans(costs: CostTable, demand: Demand, plans: Plans) -> None:
    """The plans side by side, their batches, and what it comes to in a line each."""
    print(f"{costs.model} in {costs.precision} on {costs.machine}, measured on {costs.measured_on}")
    print(f"{demand.rate:g} requests a second, p99 under {demand.slo_ms:g} ms\n")
    found = [plan for plan in plans.values() if plan]
    if found:
        _print_outcomes(found)
        _print_batches(costs, found)
    print()
    for name, plan in plans.items():
        print(f"{name}: {_verdict(demand, plan)}")


def _print_outcomes(plans: Sequence[Plan]) -> None:
    titles = ("arrivals", "devices", "workers each", "p50 ms", "p99 ms", "device busy", "workers busy", "refused")
    rows = [
        (
            plan.arrivals.name,
            str(plan.devices),
            str(plan.workers),
            milliseconds(plan.outcome.percentile_ms(50)),
            milliseconds(plan.outcome.percentile_ms(99)),
            share(plan.outcome.device_busy),
            share(plan.outcome.workers_busy),
            share(plan.outcome.refused / max(1, len(plan.outcome.latencies_s))),
            rate(plan.holds_up_to),
        )
        for plan in plans
    ]
    print_table((*titles, "holds up to"), rows, right={*titles[1:], "holds up to"})


def _print_batches(costs: CostTable, plans: Sequence[Plan]) -> None:
    """The share of pictures that are run in batches of up to each size of the table."""
    print("\nPictures by the size of their run, and the mean:")
    sizes = sorted(costs.seconds_by_batch_size)
    titles = ["arrivals", *(f"{below + 1}-{size}" if size > below + 1 else str(size) for below, size in _pairs(sizes))]
    rows = [
        [
            plan.arrivals.name,
            *(share(_part(plan, below, size)) for below, size in _pairs(sizes)),
            f"{plan.outcome.mean_batch:.1f}",
        ]
        for plan in plans
    ]
    print_table((*titles, "mean"), rows, right={*titles[1:], "mean"})


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([0, *sizes], sizes, strict=False))


def _part(plan: Plan, below: int, size: int) -> float:
    within = sum(each * count for each, count in plan.outcome.runs.items() if below < each <= size)
    return within / max(1, plan.outcome.pictures_run)


def _verdict(demand: Demand, plan: Plan | None) -> str:
    if plan is None:
        return f"no number of devices keeps p99 under {demand.slo_ms:g} ms"
    devices = f"{plan.devices} device{'s' * (plan.devices > 1)}"
    workers = f"{plan.workers} HTTP worker{'s' * (plan.workers > 1)}{' each' * (plan.devices > 1)}"
    return f"{devices} with {workers} {'will do' if plan.holds else 'will not do'}; {_break(plan)}"


def _break(plan: Plan) -> str:
    """What comes first when there is more to do."""
    at, then = plan.breaks, plan.breaks.outcome
    busy = f"device {share(then.device_busy)}, workers {share(then.workers_busy)}, event loop {share(then.loop_busy)}"
    return f"at {rate(at.rate)} a second requests wait too long for the {at.first} (busy: {busy})"


def _busy(outcome: Outcome) -> dict[str, float]:
    return {
        "device_busy": outcome.device_busy,
        "workers_busy": outcome.workers_busy,
        "event_loop_busy": outcome.loop_busy,
    }


def as_json(costs: CostTable, demand: Demand, plans: Plans) -> dict[str, Any]:
    """All of it; what could not be had is null."""
    return {
        "demand": asdict(demand),
        "plans": {name: plan and _plan_as_json(plan) for name, plan in plans.items()},
        "costs": costs.model_dump(mode="json"),
    }


def _plan_as_json(plan: Plan) -> dict[str, Any]:
    outcome = plan.outcome
    figures = {
        "devices": plan.devices,
        "workers_each": plan.workers,
        "holds": plan.holds,
        "holds_up_to_rate": plan.holds_up_to,
        "p50_ms": outcome.percentile_ms(50),
        "p99_ms": outcome.percentile_ms(99),
        **_busy(outcome),
        "requests": len(outcome.latencies_s),
        "refused": outcome.refused,
        "mean_batch": outcome.mean_batch,
    }
    runs = {str(size): count for size, count in sorted(outcome.runs.items())}
    return {name: None if value != value else value for name, value in figures.items()} | {
        "runs_by_size": runs,
        "breaks": {"rate": plan.breaks.rate, "first": plan.breaks.first, **_busy(plan.breaks.outcome)},
    }


def print_check(costs: CostTable, compared: Sequence[Comparison]) -> None:
    """What was simulated beside what was measured."""
    print(f"{costs.model} in {costs.precision} on {costs.machine}, by costs of {costs.measured_on}\n")
    titles = (
        "load",
        "rate",
        "p50 ms simulated",
        "measured",
        "p99 ms simulated",
        "measured ",
        "off",
        "others' cores",
        "errors",
    )
    rows = [
        (
            f"{each.load:.0%}",
            rate(each.rate),
            milliseconds(each.simulated_p50_ms),
            milliseconds(each.measured.p50_ms),
            milliseconds(each.simulated_p99_ms),
            milliseconds(each.measured.p99_ms),
            f"{each.off:+.0%}" if math.isfinite(each.off) else "-",
            f"{each.others_cores:.2f}",
            ", ".join(f"{kind}: {count}" for kind, count in each.measured.errors.items()) or "none",
        )
        for each in compared
    ]
    print_table(titles, rows, right=set(titles[:-1]))
    if not all(each.agrees for each in compared):
        warn(f"the simulation is off by more than {TOLERANCE:.0%} of the measured p99")
    if max(each.others_cores for each in compared) > _QUIET_CORES:
        warn("other programs have kept the processor busy, which is in the measured figures only")
