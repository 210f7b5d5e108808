"""What the manifests promise: that a cluster takes them, and that what they name is there."""

import json
import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from running import ROOT

from service import engine_host, supervisor
from service.app import create_app
from service.settings import Settings

Manifest = dict[str, Any]

FOLDER = ROOT / "deploy/kubernetes"
YOURS = "overlays/yours"
"""The one that the README shows."""
OVERLAYS = ("base", "overlays/gpu", "overlays/cpu", YOURS)
SCALED = ("overlays/gpu", YOURS)
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest that knows all we use, and the newest there are schemas of."""
PLAIN = sorted(
    path
    for folder in ("base", "components")
    for path in (FOLDER / folder).rglob("*.yaml")
    if path.stem != "kustomization"
)
"""Whole manifests, which can be judged without kubectl."""
CUSTOM = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
"""Models that were made from the definitions of custom resources."""


def _knows_components() -> bool:
    if not shutil.which("kubectl"):
        return False
    told = subprocess.run(["kubectl", "version", "--client", "--output=json"], capture_output=True, check=True).stdout
    return "kustomizeVersion" in json.loads(told)  # older ones do not tell


@cache
def built(overlay: str) -> list[Manifest]:
    """All that `kubectl apply` would send."""
    if not _knows_components():
        pytest.skip("needs kubectl 1.24 or newer")
    with tempfile.TemporaryDirectory() as folder:
        tree = shutil.copytree(FOLDER, Path(folder) / "kubernetes")
        (example,) = re.findall(r"```yaml\n(.+?)```", (tree / "README.md").read_text(), re.DOTALL)
        (tree / YOURS).mkdir()
        (tree / YOURS / "kustomization.yaml").write_text(example)
        command = ["kubectl", "kustomize", str(tree / overlay)]
        return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout))


def the(kind: str, overlay: str) -> Any:
    """The one manifest of that kind."""
    (manifest,) = (manifest for manifest in built(overlay) if manifest["kind"] == kind)
    return manifest


def pod(overlay: str) -> Any:
    return the("Deployment", overlay)["spec"]["template"]["spec"]


def container(overlay: str) -> Any:
    (only,) = pod(overlay)["containers"]
    return only


def settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the service would read them."""
    for name, value in the("ConfigMap", overlay)["data"].items():
        monkeypatch.setenv(name, value)
    return Settings(_env_file=None)


def check(manifest: Manifest, version: str) -> None:
    """Raise if a cluster of that version would refuse the manifest, or not know a field of it."""
    if models := CUSTOM.get(manifest["apiVersion"]):
        getattr(import_module(models), manifest["kind"]).model_validate(manifest, extra="forbid")
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_cluster_would_take_every_manifest(overlay: str, version: str) -> None:
    for manifest in built(overlay):
        check(manifest, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_a_cluster_would_take_every_file(path: Path, version: str) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        check(manifest, version)


@pytest.mark.parametrize("kind", ["Deployment", "NetworkPolicy", "ScaledObject", "ServiceMonitor"])
def test_a_misspelt_field_would_be_noticed(kind: str) -> None:
    manifest = the(kind, "overlays/gpu")
    with pytest.raises((ValueError, kubernetes_validate.ValidationError), match="selektor"):
        check({**manifest, "spec": {**manifest["spec"], "selektor": {}}}, VERSIONS[0])


@pytest.mark.parametrize("rules", sorted((ROOT / "deploy/prometheus/rules").glob("*.yml")), ids=lambda path: path.stem)
def test_the_alerts_become_resources_as_they_are(rules: Path) -> None:
    head = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "volo"}}
    check({**head, "spec": yaml.safe_load(rules.read_text())}, VERSIONS[0])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_one_namespace(overlay: str) -> None:
    namespace = the("Namespace", overlay)["metadata"]["name"]
    others = [manifest for manifest in built(overlay) if manifest["kind"] != "Namespace"]
    assert {manifest["metadata"].get("namespace") for manifest in others} == {namespace}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_selects_ours(overlay: str) -> None:
    labels = the("Deployment", overlay)["spec"]["template"]["metadata"]["labels"].items()
    (spread,) = pod(overlay)["topologySpreadConstraints"]
    selectors = [
        the("Deployment", overlay)["spec"]["selector"]["matchLabels"],
        the("PodDisruptionBudget", overlay)["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy", overlay)["spec"]["podSelector"]["matchLabels"],
        the("Service", overlay)["spec"]["selector"],
        spread["labelSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_lead_to_where_the_service_listens(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = container(overlay)["ports"]
    (outside,) = the("Service", overlay)["spec"]["ports"]
    (allowed,) = the("NetworkPolicy", overlay)["spec"]["ingress"][0]["ports"]
    assert outside["targetPort"] == port["name"]
    assert allowed["port"] == port["containerPort"] == settings(overlay, monkeypatch).port


@pytest.mark.parametrize("overlay", SCALED)
def test_prometheus_finds_the_pods_behind_the_service(overlay: str) -> None:
    service, monitor = the("Service", overlay), the("ServiceMonitor", overlay)["spec"]
    (endpoint,) = monitor["endpoints"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "volo"  # what the rules ask for


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_asked_for_over_http_is_a_route(overlay: str) -> None:
    routes = {getattr(route, "path", "") for route in create_app(Settings(_env_file=None)).routes}
    probes = [container(overlay)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/health/ready", "/health/ready", "/health/live"]
    assert {probe["port"] for probe in probes} <= {port["name"] for port in container(overlay)["ports"]}
    scraped = [end["path"] for m in built(overlay) if m["kind"] == "ServiceMonitor" for end in m["spec"]["endpoints"]]
    assert {*scraped, *(probe["path"] for probe in probes)} <= routes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_it_is_told_are_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = the("ConfigMap", overlay)["data"]
    assert {name.removeprefix("VOLO_").lower() for name in told} <= set(Settings.model_fields)
    assert settings(overlay, monkeypatch).http_workers * 2 == int(container(overlay)["resources"]["limits"]["cpu"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_container_reads_the_settings_and_none_that_the_cluster_makes_up(overlay: str) -> None:
    settings, keys = container(overlay)["envFrom"]
    assert settings["configMapRef"]["name"] == the("ConfigMap", overlay)["metadata"]["name"]
    assert keys["secretRef"]["optional"] is True
    assert pod(overlay)["enableServiceLinks"] is False  # VOLO_PORT=tcp://10.0.0.1:80, of a Service named volo


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_has_the_time_to_answer_what_it_has_accepted(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = settings(overlay, monkeypatch)
    pause_s = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    workers_s = told.grace_s + told.timeout_s + supervisor.DRAIN_SLACK_S
    engine_s = told.timeout_s + engine_host.STOP_SLACK_S
    assert pod(overlay)["terminationGracePeriodSeconds"] >= pause_s + workers_s + engine_s + 10


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_do_nothing_that_it_need_not(overlay: str) -> None:
    spec, only = pod(overlay), container(overlay)
    user = spec["securityContext"]["runAsUser"]
    assert f"\nUSER {user}:{user}\n" in (ROOT / "Dockerfile").read_text()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_can_write_where_the_image_writes(overlay: str) -> None:
    image = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    home, triton = (re.findall(rf"\b{name}=(\S+)", image)[0] for name in ("HF_HOME", "TRITON_CACHE_DIR"))
    mounts = {mount["mountPath"] for mount in container(overlay)["volumeMounts"]}
    assert {"/tmp", str(Path(triton).parent)} <= mounts
    assert (home in mounts) == (overlay != "overlays/cpu")  # the weights outlast the pod, where there are any


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_mounted_is_there(overlay: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    claimed = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "emptyDir" not in volume]
    claims = [manifest["metadata"]["name"] for manifest in built(overlay) if manifest["kind"].endswith("VolumeClaim")]
    assert {mount["name"] for mount in container(overlay)["volumeMounts"]} == set(volumes)
    assert claimed == claims


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_asks_for_a_gpu_where_it_is_to_serve_from_one(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = settings(overlay, monkeypatch).device
    gpus = container(overlay)["resources"]["limits"].get("nvidia.com/gpu")
    assert (device, gpus) == (("cpu", None) if overlay == "overlays/cpu" else ("cuda", "1"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_rolling_update_takes_nothing_away_unless_there_is_no_gpu_to_spare(overlay: str) -> None:
    strategy = the("Deployment", overlay)["spec"]["strategy"]["rollingUpdate"]
    no_spare = {"maxSurge": 0, "maxUnavailable": 1}
    assert strategy == (no_spare if overlay == YOURS else {"maxSurge": 1, "maxUnavailable": 0})


def test_the_readme_s_overlay_takes_the_image_from_its_registry() -> None:
    assert container("base")["image"] == "volo-serve:0.1.0"
    assert container(YOURS)["image"] == "registry.example.org/volo-serve:0.1.0"


@pytest.mark.parametrize("overlay", SCALED)
def test_the_autoscaler_alone_says_how_many_replicas_there_are(overlay: str) -> None:
    deployment, scaled = the("Deployment", overlay), the("ScaledObject", overlay)["spec"]
    assert scaled["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"]
    assert scaled["minReplicaCount"] > the("PodDisruptionBudget", overlay)["spec"]["maxUnavailable"]


def triggers() -> dict[str, Any]:
    spec = the("ScaledObject", "overlays/gpu")["spec"]
    return {trigger["name"]: trigger for trigger in spec["triggers"] if trigger["type"] == "prometheus"}


def test_the_autoscaler_asks_for_metrics_of_ours_in_our_namespace() -> None:
    documented = re.findall(r"^\| `(volo_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    namespace = the("Namespace", "overlays/gpu")["metadata"]["name"]
    for trigger in triggers().values():
        asked = re.findall(r'(volo_\w+?)(?:_bucket)?\{namespace="(\w+)"', trigger["metadata"]["query"])
        assert {name for name, _ in asked} <= set(documented)
        assert {where for _, where in asked} == {namespace}


def test_between_the_autoscaler_s_thresholds_nothing_changes() -> None:
    high, low = (triggers()[name]["metadata"] for name in ("queue-wait", "queue-wait-low"))
    assert float(low["threshold"]) == pytest.approx(0.3 * float(high["threshold"]))
    assert f"), {low['threshold']})" in low["query"]  # so that it asks for as many as there are, and no more
    assert {trigger["metricType"] for trigger in triggers().values()} == {"Value"}
    assert high["ignoreNullValues"] == low["ignoreNullValues"] == "false"


SCRAPED = {'volo_queue_limit{namespace="volo", model="m"}': "256x20"}


def waits(*, short: int = 0, long: int = 0, refused: int = 0) -> dict[str, str]:
    """So many pictures a second that wait up to 5 ms for the device, up to 100 ms, and that are refused."""
    bucket = 'volo_stage_seconds_bucket{{namespace="volo", model="m", stage="{}", le="{}"}}'
    counted = {
        bucket.format("queue", "0.005"): short,
        bucket.format("queue", "0.1"): short + long,
        bucket.format("queue", "+Inf"): short + long,
        bucket.format("device", "+Inf"): short + long,
        'volo_rejections_total{namespace="volo", model="m", reason="queue_full"}': refused,
    }
    return SCRAPED | {name: f"0+{15 * rate}x20" for name, rate in counted.items()}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
@pytest.mark.parametrize(
    ("trigger", "series", "answer"),
    [
        pytest.param("queue-wait", SCRAPED, 0, id="no picture ever: no wait"),
        pytest.param("queue-wait", waits(), 0, id="no picture now: no wait"),
        pytest.param("queue-wait", waits(short=100), 0.0045, id="short waits"),
        pytest.param("queue-wait", waits(short=80, long=20), 0.0525, id="one in five waits long"),
        pytest.param("queue-wait", waits(short=80, refused=20), 0.1, id="one in five is refused"),
        pytest.param("queue-wait", {}, None, id="nothing is scraped: no answer, so that nothing is scaled down"),
        pytest.param("queue-wait-low", waits(), 0, id="low: no picture now: no wait"),
        pytest.param("queue-wait-low", waits(short=100), 0.0045, id="low: short waits"),
        pytest.param("queue-wait-low", waits(short=80, long=20), 0.006, id="low: long waits, and no more"),
        pytest.param("queue-wait-low", {}, None, id="low: nothing is scraped: no answer"),
    ],
)
def test_the_autoscaler_s_queries_tell(
    trigger: str, series: dict[str, str], answer: float | None, tmp_path: Path
) -> None:
    expected = [] if answer is None else [{"labels": "{}", "value": answer}]
    rounded = f"round({triggers()[trigger]['metadata']['query']}, 0.0001)"
    query = {"expr": rounded, "eval_time": "5m", "exp_samples": expected}
    given = [{"series": name, "values": values} for name, values in series.items()]
    case = {"interval": "15s", "input_series": given, "promql_expr_test": [query]}
    (tmp_path / "case.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    told = subprocess.run(["promtool", "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
