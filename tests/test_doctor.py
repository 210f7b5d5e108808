"""The doctor finds what is wrong, says what to do about it, and neither hangs nor breaks."""

import json
import signal
import socket
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import PATIENCE_S, ROOT, alive, children, run, started, until

from service.doctor import limits, runtime, weights, whole
from service.doctor.findings import Check, Finding, State, well
from service.doctor.limits import Machine
from service.doctor.runtime import Card, Cuda
from service.settings import Settings

H100 = Card("H100", free=70_000_000_000, total=80_000_000_000)
GOOD = Cuda("2.13.0", built=(12, 8), driver=(12, 4), cards=(H100,))


def states(findings: Any) -> list[State]:
    return [finding.state for finding in findings]


def only(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    return finding


def test_a_check_that_breaks_is_a_finding() -> None:
    finding = only(Check("Sky", lambda: [][0]).findings())
    assert (finding.subject, finding.state) == ("Sky", State.FAILED)
    assert "IndexError" in finding.found


def test_a_check_that_hangs_is_a_finding() -> None:
    forever = threading.Event()
    finding = only(Check("Sky", lambda: [well("Sky", str(forever.wait()))], limit_s=0.01).findings())
    assert (finding.state, finding.found) == (State.FAILED, "no answer within 0 s")
    forever.set()


@pytest.mark.parametrize(
    ("device", "cuda", "state", "words"),
    [
        (
            "cuda",
            GOOD,
            State.WELL,
            "built for CUDA 12.8; the driver goes up to 12.4",
        ),  # the same major version is enough
        ("auto", GOOD, State.WELL, "H100, 70.0 of 80.0 GB free"),
        ("cuda:1", GOOD, State.FAILED, "there are 1"),
        ("cuda", Cuda("2.13.0", (12, 8), (12, 8), (Card("H100", 10**9, 8 * 10**10),)), State.WARNING, "1.0 of 80.0 GB"),
        ("cuda", Cuda("2.13.0", (12, 8), None, ()), State.FAILED, "no NVIDIA driver"),
        ("auto", Cuda("2.13.0", (12, 8), None, ()), State.WELL, "no NVIDIA driver"),
        (
            "cpu",
            GOOD,
            State.WELL,
            "the processor, as is set; torch 2.13.0, built for CUDA 12.8; the driver goes up to 12.4",
        ),
        ("cpu", GOOD, State.WELL, "; not used: H100, 70.0 of 80.0 GB free"),
        ("cpu", Cuda("2.13.0+cpu", None, None, ()), State.WELL, "2.13.0+cpu, without CUDA; there is no NVIDIA driver"),
        ("cuda", Cuda("2.13.0", (12, 8), (12, 8), (Card("H100", error="busy"),)), State.FAILED, "H100, busy"),
        ("cuda", Cuda("2.13.0+cpu", None, (12, 8), ()), State.FAILED, "is without CUDA"),
        ("auto", Cuda("2.13.0+cpu", None, (12, 8), ()), State.WARNING, "is without CUDA"),
        ("cuda", Cuda("2.13.0", (13, 0), (12, 4), ()), State.FAILED, "goes up to CUDA 12.4, torch wants 13.0"),
        ("cuda", Cuda("2.13.0", (12, 8), (12, 8), (), "no device"), State.FAILED, "no card: no device"),
    ],
)
def test_torch_driver_and_cards_are_held_against_what_is_set(device: str, cuda: Cuda, state: State, words: str) -> None:
    finding = next(iter(runtime.judge(device, cuda)))
    assert finding.state is state
    assert words in finding.found
    assert bool(finding.advice) == (state is not State.WELL)


@pytest.mark.parametrize(("device", "used"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_each_card_has_a_line_that_says_whether_it_is_used(device: str, used: int) -> None:
    cards = (H100, Card("L4", free=10**9, total=24 * 10**9), Card("A100", error="busy"))
    findings = [
        one for one in runtime.judge(device, Cuda("2.13.0", (12, 8), (12, 8), cards)) if one.subject == "Device"
    ]
    says = [f"cuda:{index} is {'' if index == used else 'not '}used: {card}" for index, card in enumerate(cards)]
    assert [one.found.partition(";")[0] for one in findings] == says
    # memory is only asked of the one that is used
    assert states(findings) == [State.WELL, State.WARNING if used == 1 else State.WELL, State.WELL]


def test_a_card_that_is_not_there_is_told_with_those_that_are() -> None:
    assert states(runtime.judge("cuda:1", GOOD)) == [State.FAILED, State.WELL]


def test_on_a_card_triton_needs_a_compiler_or_what_was_compiled_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(runtime, "version", lambda name: "3.7")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert states(runtime.judge("cuda", GOOD)) == [State.WELL, State.FAILED]
    (tmp_path / "key").mkdir()
    (tmp_path / "key/cuda_utils.so").touch()
    assert states(runtime.judge("cuda", GOOD)) == [State.WELL, State.WELL]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine(cores=4, memory=16 * 10**9, files=8192), ["well", "well", "well"]),
        (Machine(cores=1, memory=16 * 10**9, files=8192), ["warning", "well", "well"]),
        (Machine(cores=4, memory=5 * 10**8, files=8192), ["well", "warning", "well"]),
        (Machine(cores=4, memory=16 * 10**9, files=256), ["well", "well", "warning"]),
        (Machine(cores=4, memory=16 * 10**9, files=64), ["well", "well", "failed"]),
    ],
)
def test_settings_are_held_against_the_machine(machine: Machine, expected: list[str]) -> None:
    assert states(limits.judge(Settings(workers=2), [224], machine)) == expected


def test_larger_pictures_longer_queues_and_more_workers_need_more_memory() -> None:
    least = limits.needed_bytes(Settings(workers=1), [224])
    assert least < limits.needed_bytes(Settings(workers=1), [512])
    assert least < limits.needed_bytes(Settings(workers=1, queue_limit=1000), [224])
    assert least < limits.needed_bytes(Settings(workers=2), [224])


def test_a_port_that_is_taken_is_told_of() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = only(limits.port(Settings(port=taken.getsockname()[1])))
    assert finding.state is State.FAILED
    assert "already in use" in finding.found
    assert only(limits.port(Settings(port=0))).state is State.WELL


def test_weights_are_read_to_their_end(tmp_path: Path) -> None:
    assert weights.look("embedded", "embedded", None).state is State.WELL
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"torn")
    assert weights.look("torn", str(torn), None).state is State.FAILED
    assert "SHA-256" in weights.look("embedded", "embedded", "0" * 64).found
    assert weights.look("missing", str(tmp_path / "missing.pth"), None).state is State.FAILED
    assert weights.look("volo_d9", "volo_d9", None).state is State.FAILED


@pytest.mark.parametrize(
    ("offline", "reachable", "state"),
    [(False, True, State.WARNING), (False, False, State.FAILED), (True, True, State.FAILED)],
)
def test_weights_that_are_not_here_are_no_fault_unless_they_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, reachable: bool, state: State
) -> None:
    monkeypatch.setattr(weights, "cached", lambda remote: [])
    monkeypatch.setattr(weights, "_reachable", lambda url: reachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not/made/yet"))
    assert weights.look("volo_d1_224", "volo_d1_224", None).state is state
    assert not weights.here(Settings(model="volo_d1_224"))


def test_weights_that_could_not_be_written_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()  # in which not even root can make a folder
    monkeypatch.setattr(weights, "cached", lambda remote: [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file/hub"))
    finding = weights.look("volo_d1_224", "volo_d1_224", None)
    assert finding.state is State.FAILED
    assert "nothing can be written there: Not a directory" in finding.found


EMBEDDED = ROOT / "models/data/embedded.safetensors"


def in_a_hubs_cache(folder: Path, blob: str, content: bytes) -> Path:
    """Where a snapshot would have weights whose blob has this name, in a store that many repositories share."""
    shared, blobs, snapshot = (folder / part for part in ("shared", "blobs", "snapshots/main"))
    for each in (shared, blobs, snapshot):
        each.mkdir(parents=True)
    (shared / ("0" * 64)).write_bytes(content)
    (blobs / blob).symlink_to(Path("../shared") / ("0" * 64))
    path = snapshot / "model.safetensors"
    path.symlink_to(Path("../../blobs") / blob)
    return path


def test_weights_in_the_hubs_cache_are_held_against_the_name_of_their_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = EMBEDDED.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    digest, git_hash = sha256(good).hexdigest(), "a" * 40

    def looked(case: str, blob: str, content: bytes) -> Finding:
        path = in_a_hubs_cache(tmp_path / case, blob, content)
        monkeypatch.setattr(weights, "cached", lambda remote: [path])
        return weights.look("volo_d1_224", "volo_d1_224", None)

    whole = looked("whole", digest, good)
    assert (whole.state, "verified" in whole.found) == (State.WELL, True)
    damaged = looked("damaged", digest, flipped)
    assert (damaged.state, "is damaged" in damaged.found) == (State.FAILED, True)
    # nobody has said what these should be
    unknown = looked("unknown", git_hash, flipped)
    assert (unknown.state, "verified" in unknown.found) == (State.WELL, False)


def test_weights_are_verified_only_if_there_is_something_to_hold_them_against() -> None:
    assert "verified" not in weights.look("embedded", "embedded", None).found
    pinned = weights.look("embedded", "embedded", sha256(EMBEDDED.read_bytes()).hexdigest())
    assert "verified" in pinned.found


def test_another_answer_of_the_embedded_model_is_a_fault() -> None:
    def judged(status: int, label: str, model: str = "embedded") -> State:
        reply = {
            "model": model,
            "predictions": [{"label": label, "score": 0.5}],
            "timings_ms": {"total": 9.0, "device": 5.0},
        }
        return whole.judge(httpx.Response(status, json=reply), {"device": "cpu"}).state

    assert judged(200, "espresso") is State.WELL
    assert judged(200, "goldfish") is State.FAILED
    assert judged(200, "goldfish", "pets") is State.WELL
    assert judged(503, "espresso") is State.FAILED


def test_it_looks_at_everything_and_sends_a_picture_the_whole_way() -> None:
    done = run("doctor", "--json", "--port", "0", VOLO_API_KEYS="a-key", VOLO_MAX_BATCH="2")
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {"Software", "Device", "Processors", "Memory", "Open files", "Shared memory"} < set(findings)
    assert "espresso" in findings["Whole way"]["found"]


def test_what_it_has_started_ends_with_it() -> None:
    with started("doctor", "--port", "0") as doctor:
        (pid,) = until(lambda: children(doctor.pid)).values()
        doctor.terminate()
        assert doctor.wait(PATIENCE_S) == 128 + signal.SIGTERM
        until(lambda: not alive(pid))


def test_a_service_that_does_not_start_says_why(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("only one\n")
    done = run("doctor", "--port", "0", VOLO_LABELS=str(labels))
    assert done.returncode == 1
    assert "✗  Whole way" in done.stdout
    assert "it does not start" in done.stdout
    assert "1 of" in done.stdout


def test_settings_that_make_no_sense_are_one_line_and_no_traceback() -> None:
    done = run("doctor", VOLO_PORT="seventy")
    assert done.returncode == 1
    assert "✗  Settings" in done.stdout
    assert "VOLO_PORT" in done.stdout
    assert done.stderr == ""


@pytest.mark.gpu
def test_on_a_card_all_is_well() -> None:
    assert states(runtime.judge("cuda", runtime.look())) == [State.WELL, State.WELL]
