"""New weights are loaded beside the old ones, and take over without anybody noticing but in the answers."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from running import CAT, PATIENCE_S, Service, serving, until
from safetensors.torch import save_file

import models
from models.volo import VARIANTS

ADMIN = {"Authorization": "Bearer s3cret-of-admins"}


def write_weights(path: Path, label: str) -> None:
    """A checkpoint of random weights, all of whose classes are called alike."""
    torch.manual_seed(0)
    model = models.create_model(VARIANTS["volo_nano"], image_size=32, num_classes=10)
    labels = json.dumps([f"{label} {index}" for index in range(10)])
    save_file(model.state_dict(), path.with_suffix(".tmp"), metadata={"labels": labels})
    path.with_suffix(".tmp").replace(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pets.safetensors"
    write_weights(path, "first")
    return path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Service]:
    variables = {"VOLO_MODELS": f"pets={weights},embedded", "VOLO_ADMIN_KEY": "s3cret-of-admins", "VOLO_WORKERS": "2"}
    with serving(tmp_path_factory.mktemp("service"), **variables) as service:
        until(service.is_ready)
        yield service


def name(service: Service, model: str | None = None) -> str:
    """What the cat is called."""
    answer = httpx.post(
        f"{service.url}/predict", params={"model": model} if model else {}, content=CAT.read_bytes(), timeout=PATIENCE_S
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["predictions"][0]["label"])


def reload(service: Service, **query: str) -> httpx.Response:
    return httpx.post(f"{service.url}/admin/reload", params=query, headers=ADMIN, timeout=PATIENCE_S)


def test_several_models_are_served_each_under_its_name(service: Service) -> None:
    assert name(service).startswith("first")
    assert name(service, "pets").startswith("first")
    assert not name(service, "embedded").startswith("first")
    health = service.get("/health").json()
    assert [(model["name"], model["ready"]) for model in health["models"]] == [("pets", True), ("embedded", True)]
    metrics = service.get("/metrics").text
    assert 'volo_pictures_total{model="embedded"} 1.0' in metrics
    assert 'volo_pictures_total{model="pets"} 2.0' in metrics


def test_no_request_fails_while_new_weights_take_over(service: Service, weights: Path) -> None:
    ended, labels, failures = threading.Event(), [], []

    def ask() -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not ended.is_set():
                answer = client.post(f"{service.url}/predict", content=CAT.read_bytes())
                if answer.status_code == 200:
                    labels.append(answer.json()["predictions"][0]["label"].split()[0])
                else:
                    failures.append(answer.text)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        until(lambda: labels)
        write_weights(weights, "second")
        before = service.children
        answer = reload(service, model="pets")
        assert answer.json() == {"reloaded": ["pets"]}
        count = len(labels)
        until(lambda: len(labels) > count + 40)
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    assert failures == []
    assert set(labels) == {"first", "second"}
    assert labels[-1] == "second"
    after = service.children
    assert before["volo: engine embedded cpu"] == after["volo: engine embedded cpu"]
    assert before["volo: engine pets cpu"] != after["volo: engine pets cpu"]


def test_bad_weights_change_nothing_and_it_is_said_why(service: Service, weights: Path) -> None:
    kept = weights.with_suffix(".kept")
    shutil.copy(weights, kept)
    before, called = service.children, name(service)
    weights.write_bytes(weights.read_bytes()[:5000])
    answer = reload(service, model="pets")
    assert (answer.status_code, answer.json()["code"]) == (409, "reload_failed")
    assert "pets.safetensors" in answer.json()["detail"]
    assert name(service) == called
    assert service.children == before
    kept.replace(weights)


def test_a_hangup_reloads_every_model(service: Service, weights: Path) -> None:
    write_weights(weights, "third")
    service.process.send_signal(signal.SIGHUP)
    until(lambda: name(service).startswith("third"))
    until(lambda: len(service.said("model reloaded")) >= 3)
    assert service.is_ready()


def test_an_engine_that_dies_after_a_reload_is_started_again(service: Service) -> None:
    dead = service.children["volo: engine pets cpu"]
    os.kill(dead, signal.SIGKILL)
    until(lambda: service.children.get("volo: engine pets cpu", dead) != dead)
    until(service.is_ready)
    assert name(service).startswith("third")


def test_what_is_not_served_cannot_be_reloaded(service: Service) -> None:
    answer = reload(service, model="cats")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert "pets, embedded" in answer.json()["detail"]
