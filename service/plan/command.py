"""The command line of `volo plan`. Nothing of it needs torch."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from service.options import add_settings, given_settings, positive, read_settings
from service.terminal import USAGE, fail

if TYPE_CHECKING:
    from service.bench.tables import CostTable
    from service.plan.arrivals import Arrivals
    from service.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """examples:
  volo bench costs volo_d3_224                                         # on the device
  volo plan --model volo_d3_224 --rate 20000 --slo-ms 100
  volo plan --model volo_d3_224 --rate 20000 --slo-ms 100 --devices 4  # do four do?
  volo plan --model volo_d3_224 --check                                # is it true?
  volo plan --costs costs.json --rate 20000 --slo-ms 100               # measured elsewhere

Devices are replicas behind a balancer that picks one at random. Bursts are those
of a Markov-modulated Poisson process of two states. Exit status: 0 if it holds,
1 if it cannot be had, or not with the devices given, 2 if the command was
mistyped or there are no costs. Of a check: 0 if each simulated p99 is within
20 % of the measured one, 1 if it is not, or could not be measured.
"""


def add_parser(commands: Commands) -> None:
    """Add `plan` to the commands."""
    plan = commands.add_parser(
        "plan",
        help="how many devices and workers a rate takes",
        description="Simulate the service's own queue with measured costs: how many devices and HTTP workers it takes "
        "to answer so many requests a second in time, and at which rate they break.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.set_defaults(command=run)
    plan.add_argument("--costs", type=Path, metavar="FILE", help="a table (what `volo bench costs` keeps)")
    plan.add_argument("--rate", type=_amount, metavar="R", help="requests a second, on average")
    plan.add_argument("--slo-ms", type=_amount, metavar="MS", help="what the 99th percentile shall stay below")
    plan.add_argument("--devices", type=positive, metavar="N", help="see whether so many do (the fewest that do)")
    plan.add_argument("--worker-busy", type=_share, default=0.7, metavar="P", help="how busy workers may be (0.7)")
    plan.add_argument("--seconds", type=_amount, default=30.0, metavar="S", help="of a simulation, at least (30)")
    plan.add_argument("--seed", type=int, default=0, metavar="N", help="of the arrivals (0)")
    plan.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    bursts = plan.add_argument_group("arrivals")
    bursts.add_argument("--arrivals", choices=["poisson", "bursty"], help="only these (both)")
    bursts.add_argument("--burst-factor", type=_amount, default=3.0, metavar="F", help="times the mean rate (3)")
    bursts.add_argument("--burst-share", type=_share, default=0.1, metavar="P", help="of the time that is burst (0.1)")
    bursts.add_argument("--burst-s", type=_amount, default=0.5, metavar="S", help="of a burst, on average (0.5)")
    check = plan.add_argument_group("check")
    check.add_argument("--check", action="store_true", help="simulate and measure a service started here, and compare")
    check.add_argument("--paced", action="store_true", help="with a device that sleeps as long as the costs say")
    check.add_argument("--loads", type=_shares, default=[0.5, 0.8], metavar="P,P", help="of its capacity (0.5,0.8)")
    check.add_argument("--pictures", type=Path, metavar="DIR", help="JPEG files to send (those that come with it)")
    add_settings(plan, ["model", "workers", "queue_limit", "timeout_s"])


def run(arguments: argparse.Namespace) -> int:
    """Plan or check as told; the exit status."""
    settings = read_settings(arguments)
    if not arguments.check and (arguments.rate is None or arguments.slo_ms is None):
        fail("it needs --rate and --slo-ms, or --check", USAGE)
    costs = _costs(arguments, settings)
    return _check(arguments, settings, costs) if arguments.check else _plan(arguments, settings, costs)


def _costs(arguments: argparse.Namespace, settings: Settings) -> CostTable:
    from service.bench.tables import CostTable, UnusableTable, called, kept

    file = arguments.costs or kept(settings.model)
    if not (arguments.costs or file.exists()):
        _tell_how_to_measure(settings.model)
    try:
        costs = CostTable.read(file)
    except UnusableTable as error:
        fail(str(error), USAGE)
    if called(given_settings(arguments).get("model", costs.model)) != costs.model:
        _tell_how_to_measure(settings.model, f"{file} has those of {costs.model}; ")
    return costs


def _tell_how_to_measure(model: str, but: str = "") -> NoReturn:
    fail(
        f"there are no measured costs for {model}; {but}run `volo bench costs {model}` on the device. "
        "If that is another machine, let it write them with --out FILE, and name the file with --costs",
        USAGE,
    )


def _plan(arguments: argparse.Namespace, settings: Settings, costs: CostTable) -> int:
    from service.bench.progress import shown
    from service.plan import report
    from service.plan.search import Demand, Planner

    demand = Demand(
        rate=arguments.rate,
        slo_ms=arguments.slo_ms,
        workers=settings.workers or None,
        worker_busy=arguments.worker_busy,
        queue_limit=settings.queue_limit,
        timeout_s=settings.timeout_s,
        seconds=arguments.seconds,
        seed=arguments.seed,
    )
    with shown() as tell:
        planner = Planner(costs, demand, lambda what: tell(what, 0.0))
        plans = {kind.name: planner.plan(kind, arguments.devices) for kind in _kinds(arguments)}
    if arguments.json:
        print(json.dumps(report.as_json(costs, demand, plans), indent=1))
    else:
        report.print_plans(costs, demand, plans)
    return int(not all(plan and plan.holds for plan in plans.values()))


def _kinds(arguments: argparse.Namespace) -> list[Arrivals]:
    from service.plan.arrivals import Bursty, Poisson

    try:
        bursty = Bursty(arguments.burst_factor, arguments.burst_share, arguments.burst_s)
    except ValueError as error:
        fail(str(error), USAGE)
    kinds: dict[str, Arrivals] = {"poisson": Poisson(), "bursty": bursty}
    return [kinds[arguments.arrivals]] if arguments.arrivals else list(kinds.values())


def _check(arguments: argparse.Namespace, settings: Settings, costs: CostTable) -> int:
    from service.bench.child import CannotStart
    from service.bench.progress import shown
    from service.bench.tables import called
    from service.plan import report
    from service.plan.check import compare, compare_paced

    if called(settings.model) != costs.model:  # it was not named, and perhaps by its file
        settings = settings.model_copy(update={"model": costs.model})
    try:
        with shown() as tell:
            load = (arguments.loads, arguments.seconds, arguments.pictures, tell)
            compared = compare_paced(costs, *load) if arguments.paced else compare(costs, settings, *load)
    except CannotStart as error:
        fail(f"the service did not start: {error}", 1)
    except (OSError, ValueError) as error:
        fail(str(error), 1)
    report.print_check(costs, compared)
    return int(not all(each.agrees for each in compared))


def _amount(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return number


def _shares(text: str) -> list[float]:
    return [_share(part) for part in text.split(",")]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
