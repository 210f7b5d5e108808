"""What the image and the compose file promise, as far as it can be read off them; deploy/test_compose.sh runs them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import ROOT

from models.zoo import CATALOGUE
from service.doctor.command import NOT_SETTINGS
from service.doctor.limits import needed_bytes
from service.engine_host import STOP_SLACK_S
from service.settings import Settings
from service.supervisor import DRAIN_SLACK_S

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("volo", "volo-cpu")
LOCKS = ROOT / "deploy/locks"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = {stage.partition(" AS ")[2].partition("\n")[0]: stage for stage in DOCKERFILE.split("\nFROM ")[1:]}
"""By name; what is served has none."""
PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)


def default(text: str) -> str:
    """What compose makes of it where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def size_of(text: str) -> int:
    """As Docker reads it, in bytes."""
    return int(text[:-1]) << {"m": 20, "g": 30}[text[-1]]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_limited_asked_for_its_health_restarted_and_its_log_is_rotated(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":(\$\{\w+:-)?v?\d+\.\d+\.\d+", service["image"])
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits.get("cpus") or service["cpu_quota"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert service["profiles"]


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_but_the_service_has_a_public_port(name: str) -> None:
    public = [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")]
    assert public == (["${VOLO_PUBLISH:-8000}:8000"] if name in OURS else [])


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_a_privilege_that_it_need_not_have(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    exporter = name == "dcgm-exporter"  # it reads the card's counters, and its start writes the linker's cache
    assert service.get("cap_add", []) == (["SYS_ADMIN"] if exporter else [])
    assert service.get("read_only", False) is not exporter


@pytest.mark.parametrize("name", OURS)
def test_the_service_may_write_nowhere_but_its_volume_and_tmp(name: str) -> None:
    assert (SERVICES[name]["tmpfs"], SERVICES[name]["volumes"]) == (["/tmp:size=2g"], ["weights:/cache"])


@pytest.mark.parametrize("name", SERVICES)
def test_who_waits_for_a_service_waits_for_its_health_in_every_profile(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert set(SERVICES[name]["profiles"]) <= set(SERVICES[other]["profiles"])


@pytest.mark.parametrize("name", OURS)
def test_what_it_is_told_are_settings(name: str) -> None:
    environment = SERVICES[name]["environment"]
    told = {key.removeprefix("VOLO_").lower() for key in environment if key.startswith("VOLO_")}
    assert told <= set(Settings.model_fields)


@pytest.mark.parametrize("name", OURS)
def test_an_env_file_made_for_make_serve_neither_hides_it_nor_tells_it_grafana_s_password(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert (environment["VOLO_HOST"], environment["GRAFANA_PASSWORD"]) == ("0.0.0.0", "")
    assert SERVICES[name]["ports"] == [f"${{VOLO_PUBLISH:-8000}}:{environment['VOLO_PORT']}"]


@pytest.mark.parametrize("name", OURS)
def test_what_the_processes_may_need_fits_into_its_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service, environment = SERVICES[name], SERVICES[name]["environment"]
    processors = int(default(service["cpu_quota"])) // 100_000
    monkeypatch.setattr("service.settings.cores", lambda: processors)  # as in the container, on a machine that has them
    size = CATALOGUE[default(environment["VOLO_MODEL"])].image_size
    (tmp,) = service["tmpfs"]
    needed = needed_bytes(Settings(_env_file=None), [size]) + size_of(tmp.partition("size=")[2])
    assert needed <= size_of(default(service["deploy"]["resources"]["limits"]["memory"]))


def test_doctor_knows_what_the_compose_file_is_given() -> None:
    given = set(re.findall(r"\$\{(VOLO_\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert given <= {f"VOLO_{field.upper()}" for field in Settings.model_fields} | NOT_SETTINGS


@pytest.mark.parametrize("name", OURS)
def test_it_has_the_time_to_answer_what_it_has_accepted(name: str) -> None:
    fields = Settings.model_fields
    drain_s = fields["grace_s"].default + 2 * fields["timeout_s"].default + DRAIN_SLACK_S + STOP_SLACK_S
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain_s


def test_on_a_gpu_it_serves_from_the_gpu_or_not_at_all() -> None:
    service = SERVICES["volo"]
    assert service["environment"]["VOLO_DEVICE"] == "cuda"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("name", OURS)
def test_an_image_can_be_built_with_torch_from_an_index_of_ones_own(name: str) -> None:
    given = SERVICES[name]["build"]["args"]
    assert given == {"TORCH_INDEX": "${TORCH_INDEX:-}"}
    assert all(re.search(rf"^ARG {argument}=$", DOCKERFILE, re.MULTILINE) for argument in given)


def test_what_is_mounted_is_there() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert all((ROOT / mount).is_dir() if mount.startswith(".") else mount in COMPOSE["volumes"] for mount in mounts)


def test_what_the_image_is_made_of_reaches_the_build() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.replace("${LOCK}", "service"), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
        assert any(Path(path).match(pattern) for pattern in kept)


def test_a_container_is_nobody_s_and_has_its_weights_outside_an_init_and_a_health_check() -> None:
    lines = STAGES[""].splitlines()
    entry = 'ENTRYPOINT ["tini", "--", "volo-entrypoint"]'
    assert {"USER 10001:10001", "VOLUME /cache", "STOPSIGNAL SIGTERM", entry} <= set(lines)
    (check,) = [line for line in lines if line.startswith("HEALTHCHECK ")]
    assert check.endswith(' CMD ["volo-entrypoint", "ready"]')


def test_the_image_has_no_compiler_and_tells_which_version_it_is() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert "gcc" in STAGES["dependencies"]
    assert "gcc" not in STAGES[""]
    assert f"\nARG VERSION={version}\n" in STAGES[""]
    assert {default(SERVICES[name]["image"]) for name in OURS} == {f"volo-serve:{version}"}
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", STAGES[""]))
    assert labels == {"title", "description", "licenses", "version", "revision"}


def test_dependencies_have_a_layer_that_a_change_of_the_code_leaves_alone() -> None:
    assert re.findall(r"^COPY (?!deploy/)", STAGES["dependencies"], re.MULTILINE) == []
    copied = re.findall(r"^COPY --from=(.+)$", STAGES[""], re.MULTILINE)
    assert copied == ["dependencies /opt /opt", "code /code /opt/volo"]


def pinned(path: Path) -> dict[str, str]:
    """The version of each distribution in a file of requirements."""
    return {canonicalize_name(name): version for name, version in PIN.findall(path.read_text())}


@pytest.mark.parametrize(("lock", "extras"), [("service", ["tracing"]), ("ray", ["tracing", "ray"])])
def test_an_image_installs_what_the_project_and_the_extras_need_to_the_byte(lock: str, extras: list[str]) -> None:
    script = [sys.executable, "deploy/requirements.py", "pyproject.toml", *extras]
    needed = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    torch, others = pinned(LOCKS / "torch.txt"), pinned(LOCKS / f"{lock}.txt")
    assert torch.items() & others.items() == {name: torch[name] for name in torch.keys() & others.keys()}.items()
    for requirement in map(Requirement, needed.splitlines()):
        assert requirement.specifier.contains({**torch, **others}[canonicalize_name(requirement.name)])
    for name, version in pinned(ROOT / "deploy/constraints.txt").items():
        assert {**torch, **others}.get(name, version) == version


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.txt")), ids=lambda lock: lock.stem)
def test_a_lock_takes_nothing_whose_hash_it_does_not_know(lock: Path) -> None:
    entries = lock.read_text().replace("\\\n", "").splitlines()
    assert all(re.fullmatch(r"\S+==\S+( +--hash=sha256:[0-9a-f]{64})+", entry) for entry in entries if entry[0] != "#")


@pytest.mark.skipif(not (find_spec("triton") and shutil.which("gcc")), reason="needs Triton and gcc")
def test_tritons_launcher_is_compiled_without_a_driver(tmp_path: Path) -> None:
    command = [sys.executable, "deploy/compile_launcher.py"]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (launcher,) = tmp_path.rglob("cuda_utils*.so")
    assert b"libcuda.so.1" in launcher.read_bytes()
