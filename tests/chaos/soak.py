"""Mixed traffic for half an hour while engines die and are loaded anew; at the end everything must add up.

PYTHONPATH=tests .venv/bin/python tests/chaos/soak.py --minutes 30 --out soak
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from callers import GONE, GOOD, Caller, Ledger
from loading import ask
from prometheus_client.parser import text_string_to_metric_families
from running import Service, alive, serving, until

ENGINE = "volo: engine embedded cpu"
CALLERS = 8
SHARE = 0.7
"""Of the capacity that was measured before."""
KILLS, RELOADS = 15, 6
"""Into so many equal parts they cut the time; the last one's end is left to come to rest."""
LOOKS = 360
REST_S = 20.0
"""After so long at rest a process has closed all that it will."""
GROWTH = 0.05
"""More of its memory than that a process may not gain in the second half."""


@dataclass
class Look:
    """What one process had at a time."""

    at_s: float
    title: str
    pid: int
    memory: int
    threads: int
    files: int


def look(service: Service) -> list[Look]:
    """At every process of the service that is there."""
    found, now = [], time.monotonic()
    for title, pid in {"volo: supervisor": service.process.pid, **service.children}.items():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            pss = Path(f"/proc/{pid}/smaps_rollup").read_text().partition("Pss:")[2].split()[0]
            threads = status.partition("Threads:")[2].split()[0]
            files = len(os.listdir(f"/proc/{pid}/fd"))
        except (OSError, IndexError):  # it has just ended
            continue
        found.append(Look(now, title, pid, int(pss) * 1024, int(threads), files))
    return found


def counted(service: Service, name: str, label: str = "") -> Counter[str]:
    """A metric's samples, summed by a label."""
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(service.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.labels.get("endpoint", "") not in ("/metrics", "/health/ready"):
                counts[sample.labels.get(label, "")] += int(sample.value)
    return counts


def capacity(service: Service, seconds: float = 10.0) -> float:
    """Good pictures a second, from as many callers as there will be."""
    ledger, over = Ledger(), threading.Event()
    right = [ask(service, picture).json()["predictions"] for picture in GOOD]

    def ask_on(caller: Caller) -> None:
        while not over.is_set():
            ledger.note("", caller.good())

    callers = [Caller(service, ledger, right, 1, seed) for seed in range(CALLERS)]
    run([threading.Thread(target=ask_on, args=[caller]) for caller in callers], over, seconds)
    return ledger.told["ok"] / seconds


def run(threads: list[threading.Thread], over: threading.Event, seconds: float) -> None:
    for thread in threads:
        thread.start()
    over.wait(seconds)
    over.set()
    for thread in threads:
        thread.join(90)
    assert not any(thread.is_alive() for thread in threads), "a request hangs"


def disturb(service: Service, over: threading.Event, seconds: float, events: list[tuple[float, str]]) -> None:
    """Kill engines and have them loaded anew, one after the other, each when the service is ready."""
    began_s = time.monotonic()
    due = [(seconds * part / KILLS, "killed") for part in range(1, KILLS)]
    due += [(seconds * part / RELOADS, "reload") for part in range(1, RELOADS)]
    for due_s, what in sorted(due):
        if over.wait(max(0.0, began_s + due_s - time.monotonic())):
            return
        until(service.is_ready)
        engine = until(lambda: service.children.get(ENGINE))
        reloaded = len(service.said("model reloaded"))
        events.append((time.monotonic(), what))
        if what == "killed":
            os.kill(engine, signal.SIGKILL)
        else:
            os.kill(service.process.pid, signal.SIGHUP)
            until(lambda reloaded=reloaded: len(service.said("model reloaded")) > reloaded)  # type: ignore[misc]
        until(lambda engine=engine: not alive(engine))  # type: ignore[misc]  # or the next one killed might be this


def watch(
    service: Service, over: threading.Event, every_s: float, looks: list[Look], lent: list[tuple[float, int]]
) -> None:
    while not over.wait(every_s):
        looks += look(service)
        lent.append((time.monotonic(), counted(service, "volo_slots_lent").total()))


def undone(service: Service, events: list[tuple[float, str]]) -> list[str]:
    """Where the service has not seen just those kills and reloads that were done to it."""
    done = Counter(what for _, what in events)
    seen = {
        "models reloaded": (len(service.said("model reloaded")), done["reload"]),
        "engines restarted": (counted(service, "volo_engine_restarts_total").total(), done["killed"]),
        "workers restarted": (counted(service, "volo_worker_restarts_total").total(), 0),
    }
    return [f"{what}: {got}, not {right}" for what, (got, right) in seen.items() if got != right]


def differences(server: Counter[str], told: Counter[str]) -> list[str]:
    """Where the service's count of outcomes and the callers' do not agree.

    Of one who left the service may say anything that it would have been told, or nothing if it had not come yet.
    """
    rest = server - told
    missing = told - server
    del missing[GONE]
    faults = [f"callers were told {count} times {code} more than was counted" for code, count in missing.items()]
    if rest.total() > told[GONE]:
        faults.append(f"{rest.total()} more were counted than the {told[GONE]} who left: {dict(rest)}")
    return faults


def mistold(lines: list[dict[str, Any]], told: dict[str, str]) -> list[str]:
    """Requests of which the service's log has something else than their callers were told, or has it twice.

    Of one who left there is one line at most, for its head may not have come, and none of a fault of the service.
    """
    logged: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        logged[line["request_id"]].append(line["outcome"])
    faults = []
    for request_id, outcome in told.items():
        mine = logged[request_id]
        if (len(mine) > 1 or "internal_error" in mine) if outcome == GONE else mine != [outcome]:
            faults.append(f"{request_id} was told {outcome}, and is logged as {mine}")
    return faults


def growth(looks: list[Look]) -> list[str]:
    """Processes that have more and more. An engine begins afresh each time that it is killed."""
    faults = []
    for pid in {each.pid for each in looks}:
        mine = [each for each in looks if each.pid == pid]
        half = mine[len(mine) // 2 :]
        if len(half) < 12 or mine[-1].at_s < looks[-1].at_s:  # it is gone
            continue
        at_s = np.array([each.at_s for each in half])
        slope, _ = np.polyfit(at_s - at_s[0], [each.memory for each in half], 1)
        gained = slope * (at_s[-1] - at_s[0])
        if gained > max(GROWTH * half[0].memory, 8e6):
            faults.append(
                f"{mine[0].title} gained {gained / 1e6:.0f} MB of {half[0].memory / 1e6:.0f} in the second half"
            )
        for what in ("threads", "files"):
            least, last = min(getattr(each, what) for each in half), getattr(half[-1], what)
            if last > least + CALLERS + 4:
                faults.append(f"{mine[0].title} had {least} {what} once, and {last} at the end")
    return faults


def kept(before: list[Look], after: list[Look]) -> list[str]:
    """Processes that have more descriptors when nobody asks any more than they had before anybody did."""
    had = {each.pid: each.files for each in before}
    grown = [each for each in after if each.files > had.get(each.pid, each.files) + 1]  # one for our own question
    return [f"{each.title} had {had[each.pid]} descriptors at rest, and {each.files} after it all" for each in grown]


def draw(
    file: Path, ledger: Ledger, looks: list[Look], lent: list[tuple[float, int]], events: list[tuple[float, str]]
) -> None:
    """Outcomes a second, what each process has, and slots lent; upright lines where something was done."""
    from matplotlib.figure import Figure

    figure = Figure((10, 8.4), layout="constrained")
    above, below, lowest = figure.subplots(3, sharex=True)
    began_s = ledger.timeline[0][0]
    bins = np.arange(0, ledger.timeline[-1][0] - began_s + 10, 10)
    for code in sorted(ledger.told, key=lambda code: -ledger.told[code]):
        counts, _ = np.histogram([at_s - began_s for at_s, each in ledger.timeline if each == code], bins)
        above.plot(bins[:-1] / 60, counts / 10, label=code, linewidth=1)
    for title in sorted({each.title for each in looks if each.title.startswith("volo: ")}):
        mine = [each for each in looks if each.title == title]
        minutes, megabytes = [(each.at_s - began_s) / 60 for each in mine], [each.memory / 1e6 for each in mine]
        name = title.removeprefix("volo: ")
        (dots,) = below.plot(minutes, megabytes, ".", markersize=2, label=name)
        for what, mark in (("threads", "."), ("files", "x")):
            had = [getattr(each, what) for each in mine]
            lowest.plot(minutes, had, mark, markersize=2, color=dots.get_color(), label=f"{name}: {what}")
    lowest.plot([(at_s - began_s) / 60 for at_s, _ in lent], [count for _, count in lent], "k", label="slots lent")
    for at_s, what in events:
        for axes in (above, below, lowest):
            axes.axvline((at_s - began_s) / 60, color="tab:red" if what == "killed" else "tab:blue", alpha=0.3)
    above.set(ylabel="requests a second", yscale="symlog", ylim=(0, None))
    below.set(ylabel="MB", ylim=(0, None))
    lowest.set(ylabel="threads, descriptors, slots", xlabel="minutes; red: engine killed, blue: reload", ylim=(0, None))
    for axes in (above, below, lowest):
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file)


def soak(service: Service, seconds: float, out: Path) -> list[str]:
    """The whole of it: what was not as promised."""
    until(service.is_ready)
    rate = SHARE * capacity(service)
    right = [ask(service, picture).json()["predictions"] for picture in GOOD]
    before, at_rest = counted(service, "volo_requests_total", "outcome"), look(service)
    ledger, over = Ledger(), threading.Event()
    looks: list[Look] = []
    lent: list[tuple[float, int]] = []
    events: list[tuple[float, str]] = []
    callers = [Caller(service, ledger, right, CALLERS / rate, seed) for seed in range(CALLERS)]
    threads = [threading.Thread(target=caller.ask_on, args=[over]) for caller in callers]
    threads.append(threading.Thread(target=disturb, args=[service, over, seconds, events]))
    threads.append(threading.Thread(target=watch, args=[service, over, seconds / LOOKS, looks, lent]))
    run(threads, over, seconds)
    until(service.is_ready)
    until(lambda: counted(service, "volo_requests_in_flight").total() == 1)  # this one
    server = counted(service, "volo_requests_total", "outcome") - before
    faults = ledger.wrong + differences(server, ledger.told) + growth(looks)
    faults += mistold(service.said("request"), ledger.by_id)
    ended_s = time.monotonic()
    while (held := kept(at_rest, look(service))) and time.monotonic() < ended_s + REST_S:
        time.sleep(1)
    faults += undone(service, events) + held
    for gauge in ("volo_queue_depth", "volo_background_depth", "volo_pictures_in_run", "volo_slots_lent"):
        if left := counted(service, gauge).total():
            faults.append(f"{gauge} is {left} at the end")
    service.process.send_signal(signal.SIGTERM)
    if status := service.process.wait(60):
        faults.append(f"SIGTERM ended it with status {status}")
    print(f"{seconds / 60:.0f} minutes at {rate:.0f} requests a second: {ledger.told.total()} requests")
    for code, count in ledger.told.most_common():
        print(f"  {code:24} {count:8}   counted by the service {server[code]:8}")
    done = Counter(what for _, what in events)
    print(f"engines killed: {done['killed']}, reloads: {done['reload']}")
    draw(out / "soak.png", ledger, looks, lent, events)
    (out / "soak.json").write_text(json.dumps({"told": ledger.told, "counted": server, "faults": faults}, indent=2))
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), VOLO_WORKERS="2") as service:
        faults = soak(service, arguments.minutes * 60, arguments.out)
    for fault in faults[:20]:
        print(f"✗  {fault}")
    print(f"{len(faults)} promises were broken." if faults else "All of it adds up.")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
