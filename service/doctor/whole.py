"""One picture through the whole service: real processes, a real port, the settings that are set."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import httpx

from service.doctor.findings import Finding, failed, warning, well
from service.settings import Settings

EXPECTED = "espresso"
"""What the embedded model says of the sample."""
START_S = 240.0
"""A service that is not done with the picture by then is ended."""


def left_out() -> Iterator[Finding]:
    """Instead of the check where it would download weights, or cannot have them."""
    yield warning("Whole way", "not tried, for want of the weights", "Ask again when they are here.")


def check(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    """Start the service, with what was ``given`` on the command line above the environment, and send it a picture."""
    with started(given) as lines:
        ready, reason = _await_ready(lines)
        if not ready:
            yield failed(
                "Whole way", f"it does not start: {reason}", "What is wrong above may be why; the log has more."
            )
            return
        headers = {"X-API-Key": settings.keys[0]} if settings.keys else {}
        sample = (files("models.data") / "samples" / "coffee.jpg").read_bytes()
        url, limit_s = f"{ready['url']}/predict", settings.timeout_s + 5
        past_proxies = httpx.Client(trust_env=False, verify=False)  # and a certificate is for another name
        with past_proxies as client:
            answer = client.post(url, content=sample, headers=headers, timeout=limit_s)
    yield judge(answer, ready)


@contextmanager
def started(given: Mapping[str, str]) -> Iterator[Iterator[dict[str, Any]]]:
    """A service on a free port, and what it logs."""
    ours = {"host": "127.0.0.1", "port": "0", "workers": "1", "grace_s": "0", "log_format": "json", "log_level": "info"}
    settings = {f"VOLO_{name.upper()}": value for name, value in {**given, **ours}.items()}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "service", "serve"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **settings},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    atexit.register(process.kill)  # we are a thread, which is not asked when everything ends
    limit = threading.Timer(START_S, process.kill)  # and with it go its children
    limit.start()
    try:
        yield (json.loads(line) for line in process.stderr if line.startswith("{"))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        limit.cancel()
        process.stderr.close()


def _await_ready(lines: Iterator[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The line that says that it is ready; or none, and the last reason that was given."""
    reason = "it says nothing"
    for line in lines:
        if line["event"] == "ready":
            return line, ""
        if line["level"] in ("error", "critical"):
            reason = str(line.get("reason", line["event"]))
    return {}, reason


def judge(answer: httpx.Response, ready: Mapping[str, Any]) -> Finding:
    """What to make of the answer to the sample."""
    if answer.status_code != 200:
        return failed("Whole way", f"the sample was answered {answer.status_code}: {answer.text[:200]}", "See the log.")
    reply = answer.json()
    best = reply["predictions"][0]
    found = f"{best['label']} {best['score']:.0%} by {reply['model']} on {ready['device']}"
    if reply["model"] == "embedded" and best["label"] != EXPECTED:
        return failed(
            "Whole way", f"{found}, and not {EXPECTED}", "The weights or the libraries are not those it was made with."
        )
    timings = reply["timings_ms"]
    return well("Whole way", f"{found}, in {timings['total']:.0f} ms of which the device had {timings['device']:.0f}")
