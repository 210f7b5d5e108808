"""The stand of `volo bench overhead`: a real worker and a real engine, and nothing computed."""

import argparse
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.preprocess import crop
from service.bench.overhead import Nothing, cropped, nothing_card, run, serving
from service.images import decode
from service.outputs import Wants


def test_its_picture_is_cropped_already() -> None:
    picture = decode(cropped(16), max_pixels=256)
    assert (crop(picture, 16, 1.0) == np.asarray(picture)).all()


def test_its_device_has_an_answer_for_every_picture() -> None:
    outputs = Nothing(10).run([np.zeros((8, 8, 3), np.uint8)] * 3, 4, False, Wants.NONE)
    assert outputs.logits.shape == (3, 10)
    assert np.isfinite(outputs.logits).all()


def test_a_worker_and_an_engine_answer_for_it() -> None:
    with serving(nothing_card(8, 10)) as url:
        answer = httpx.post(f"{url}/predict", content=cropped(8)).json()
    assert answer["model"] == "nothing"
    assert len(answer["predictions"]) == 5


def test_it_says_what_a_request_costs_each_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "overhead.json"
    told = argparse.Namespace(image_size=8, classes=10, connections=[2], seconds=1.0, warm_up=0.2, json=file)
    assert run(told) == 0
    (step,) = json.loads(file.read_text())["steps"]
    assert step["answered"] > 0
    assert step["errors"] == {}
    assert step["server"]["cores"].keys() == {"worker", "engine"}
    assert "worker us" in capsys.readouterr().out
