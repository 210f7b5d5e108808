"""The Open Inference Protocol, asked by Triton's own client and its perf_analyzer."""

import asyncio
import base64
import json
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from calling import application, calling, listening, outcomes, serving_engine
from fakes import CARD, CLASSES, FakeDevice
from PIL import Image
from running import ROOT, environment
from tritonclient.utils import InferenceServerException

from service.dialects.messages import InferReply, RequestParameters
from service.dialects.open_inference import likeliest
from service.dialects.tensors import HEADER_LENGTH
from service.inference import Inference

T = TypeVar("T")


def png(red: int, size: tuple[int, int] = (20, 10)) -> bytes:
    """A picture of the class ``red``, as the device takes it."""
    file = BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with serving_engine() as engine, listening(application(engine)) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving_engine() as engine, calling(application(engine, max_batch=8)) as client:
        yield client


async def by_triton(address: str, ask: Callable[[triton.InferenceServerClient], T]) -> T:
    """What Triton's client, which blocks and keeps to one thread, makes of it."""

    def in_thread() -> T:
        client = triton.InferenceServerClient(address, concurrency=8, network_timeout=30)
        try:
            return ask(client)
        finally:
            client.close()

    return await asyncio.to_thread(in_thread)


def encoded_input(*reds: int, shape: tuple[int, ...] | None = None, binary: bool = True) -> triton.InferInput:
    files = np.array([png(red) for red in reds], object)
    if not binary:
        files = np.array([base64.b64encode(file) for file in files], object)
    tensor = triton.InferInput("image", shape or [len(reds)], "BYTES")
    tensor.set_data_from_numpy(files.reshape(shape or len(reds)), binary_data=binary)
    return tensor


def pixel_input(*reds: int, binary: bool = True) -> triton.InferInput:
    pixels = np.zeros((len(reds), 12, 16, 3), np.uint8)
    pixels[..., 0] = np.array(reds)[:, None, None]
    tensor = triton.InferInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


INPUTS = {
    "encoded": lambda: encoded_input(7, 200),
    "encoded, Triton's batch": lambda: encoded_input(7, 200, shape=(2, 1)),
    "encoded in JSON": lambda: encoded_input(7, 200, binary=False),
    "pixels": lambda: pixel_input(7, 200),
    "pixels in JSON": lambda: pixel_input(7, 200, binary=False),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("binary", [True, False], ids=["binary answer", "JSON answer"])
async def test_tritons_client_gets_labels_indices_and_scores(
    address: str, make: Callable[[], triton.InferInput], binary: bool
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "indices", "scores")]
    result = await by_triton(
        address, lambda client: client.infer("embedded", [make()], outputs=outputs, parameters={"top_k": 3})
    )
    labels, indices, scores = (result.as_numpy(name) for name in ("labels", "indices", "scores"))
    assert [label.decode() if binary else label for label in labels[:, 0]] == ["class 7", "class 200"]
    assert indices.dtype == np.int64
    assert indices[:, 0].tolist() == [7, 200]
    assert (scores.dtype, scores.shape) == (np.float32, (2, 3))
    np.testing.assert_allclose(scores[:, 0], 0.9, atol=1e-5)


async def test_logits_come_when_they_are_asked_for(address: str) -> None:
    asked = [triton.InferRequestedOutput("logits")]
    result = await by_triton(address, lambda client: client.infer("embedded", [pixel_input(3)], outputs=asked))
    logits = result.as_numpy("logits")
    assert logits.shape == (1, CLASSES)
    assert logits.argmax() == 3
    assert logits.max() == pytest.approx(np.log(0.9), abs=1e-5)
    plain = await by_triton(address, lambda client: client.infer("embedded", [pixel_input(3)]))
    assert plain.as_numpy("logits") is None
    assert plain.as_numpy("scores").shape == (1, 5)


@pytest.mark.parametrize("output", ["scores", "logits"])
async def test_the_classification_extension_gives_value_index_and_label(address: str, output: str) -> None:
    asked = [triton.InferRequestedOutput(output, class_count=2)]
    result = await by_triton(address, lambda client: client.infer("embedded", [pixel_input(3)], outputs=asked))
    ((first, _),) = result.as_numpy(output)
    value, index, label = first.decode().split(":")
    assert (index, label) == ("3", "class 3")
    assert float(value) == pytest.approx(0.9 if output == "scores" else np.log(0.9), abs=1e-5)


@pytest.mark.parametrize("binary", [True, False], ids=["binary answer", "JSON answer"])
async def test_rows_that_the_threshold_shortens_are_filled_up(address: str, binary: bool) -> None:
    def ask(client: triton.InferenceServerClient, **parameters: float) -> list[list[Any]]:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "indices", "scores")]
        result = client.infer("embedded", [pixel_input(3, 4)], outputs=outputs, parameters=parameters)
        return [result.as_numpy(output).tolist() for output in ("labels", "indices", "scores")]

    labels, indices, scores = await by_triton(address, lambda client: ask(client, top_k=2, threshold=0.5))
    assert [each.decode() if binary else each for each in labels[1]] == ["class 4"]
    assert indices == [[3], [4]]
    assert scores == [[pytest.approx(0.9)]] * 2
    assert await by_triton(address, lambda client: ask(client, threshold=0.95)) == [[[], []]] * 3


def test_each_row_is_as_long_as_the_longest() -> None:
    def inference(*scores: float) -> Inference:
        return Inference(CARD, (1, 1), np.log(np.array(scores, np.float32)), None, None)

    found = likeliest([inference(0.5, 0.4, 0.1), inference(0.1, 0.1, 0.8)], RequestParameters(threshold=0.3))
    assert found.labels.tolist() == [["class 0", "class 1"], ["class 2", ""]]
    assert found.indices.tolist() == [[0, 1], [2, -1]]
    np.testing.assert_allclose(found.scores, [[0.5, 0.4], [0.8, 0.0]], rtol=1e-6)


async def test_tritons_client_may_ask_many_at_once(address: str) -> None:
    def ask(client: triton.InferenceServerClient) -> list[int]:
        asked = [client.async_infer("embedded", [pixel_input(red)], request_id=str(red)) for red in range(8)]
        results = [one.get_result() for one in asked]
        assert [result.get_response()["id"] for result in results] == [str(red) for red in range(8)]
        return [int(result.as_numpy("indices")[0, 0]) for result in results]

    assert await by_triton(address, ask) == list(range(8))


async def test_the_timeout_that_tritons_client_sends_is_held() -> None:
    device = FakeDevice()
    async with serving_engine(device) as engine, listening(application(engine)) as port:
        device.gate.clear()

        def ask(client: triton.InferenceServerClient) -> None:
            with pytest.raises(InferenceServerException, match=r"within 0\.05 s"):
                client.infer("embedded", [pixel_input(1)], timeout=50_000)

        await by_triton(f"127.0.0.1:{port}", ask)
        device.gate.set()


async def test_tritons_client_finds_its_way(address: str) -> None:
    def ask(client: triton.InferenceServerClient) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("embedded")
        assert client.is_model_ready("embedded", "1")
        assert not client.is_model_ready("nothing")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("embedded")
        assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
        assert metadata["outputs"][-1] == {"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]}
        assert client.get_model_config("embedded")["max_batch_size"] == 64
        assert client.get_model_repository_index() == [
            {"name": "embedded", "version": "1", "state": "READY", "reason": ""}
        ]

    await by_triton(address, ask)


async def test_tritons_client_is_told_what_was_wrong(address: str) -> None:
    for model, tensor, complaint in (
        ("nothing", pixel_input(1), "No model 'nothing' is served; there is embedded"),
        ("embedded", triton.InferInput("pixels", [1], "BYTES"), 'one input, named "image"'),
    ):
        with pytest.raises(InferenceServerException, match=complaint):
            await by_triton(address, lambda client, m=model, t=tensor: client.infer(m, [t]))  # type: ignore[misc]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_a_compressed_request_is_refused_clearly(address: str, algorithm: str) -> None:
    with pytest.raises(InferenceServerException, match="Compressed bodies are not read") as refusal:
        await by_triton(
            address,
            lambda client: client.infer("embedded", [pixel_input(1)], request_compression_algorithm=algorithm),
        )
    assert refusal.value.status() == "415"


async def test_until_the_model_is_there_nothing_is_ready(tmp_path: Path) -> None:
    async with calling(application(tmp_path / "engine.sock"), ready=False) as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/embedded/ready"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert (await client.get("/v2/models/embedded")).status_code == 503
        (entry,) = (await client.post("/v2/repository/index")).json()
        assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "the engine is starting")


def in_json(**tensor: Any) -> dict[str, Any]:
    data = base64.b64encode(png(1)).decode()
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [data], **tensor}]}


WRONG: list[tuple[dict[str, Any], int]] = [
    ({"content": b"{"}, 400),
    ({"content": b""}, 400),
    ({"json": {"inputs": []}}, 400),
    ({"json": in_json(name="picture")}, 400),
    ({"json": in_json(datatype="FP32")}, 400),
    ({"json": in_json(shape=[2])}, 400),
    ({"json": in_json(shape=[-1])}, 422),
    ({"json": in_json(shape=[])}, 422),
    ({"json": in_json(shape=[9], data=["x"] * 9)}, 422),
    ({"json": in_json(data=[1])}, 400),
    ({"json": in_json(data=None)}, 400),
    ({"json": in_json(data=["!"])}, 400),
    ({"json": in_json(data=["https://example.com/cat.jpg"])}, 400),
    ({"json": in_json(data=[""])}, 400),
    ({"json": in_json(data=["AAAA"])}, 415),
    ({"json": in_json(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, 300])}, 400),
    ({"json": in_json(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2])}, 400),
    ({"json": in_json(datatype="UINT8", shape=[1, 0, 0, 3], data=[])}, 400),
    ({"json": in_json(datatype="UINT8", shape=[1, 10**6, 10**6, 3], data=[])}, 413),
    ({"json": in_json(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, 3.5])}, 400),
    ({"json": in_json(datatype="UINT8", shape=[1, 1, 1, 3], data=["1", "2", "3"])}, 400),
    ({"json": in_json(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, -1])}, 400),
    ({"json": in_json(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, 10**30])}, 400),
    ({"json": in_json(datatype="UINT8", shape=[1, 1, 1, 3], data=[[1], [2, 3]])}, 400),
    ({"json": {**in_json(), "parameters": {"top_k": 0}}}, 400),
    ({"json": {**in_json(), "parameters": {"top_k": True}}}, 400),
    ({"json": {**in_json(), "parameters": {"threshold": 1.5}}}, 400),
    ({"json": {**in_json(), "outputs": [{"name": "scores", "parameters": {"classification": 0}}]}}, 400),
    ({"json": {**in_json(), "outputs": [{"name": "boxes"}]}}, 400),
    ({"json": {**in_json(), "outputs": [{"name": "labels", "parameters": {"classification": 2}}]}}, 422),
    ({"json": in_json(parameters={"binary_data_size": 9})}, 400),
    ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "3"}}, 400),
    ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "-1"}}, 400),
    ({"content": b"{}", "headers": {"content-encoding": "gzip"}}, 415),
]


@pytest.mark.parametrize(("body", "status"), WRONG, ids=[str(number) for number in range(len(WRONG))])
async def test_what_makes_no_sense_is_told_in_its_words(
    client: httpx.AsyncClient, body: dict[str, Any], status: int
) -> None:
    answer = await client.post("/v2/models/embedded/infer", **body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"]


@pytest.mark.parametrize("tail", [b"", b"\x03\0\0\0ab", b"\x02\0", b"\x02\0\0\0ab!"])
async def test_binary_tensors_that_end_early_or_late_are_no_tensors(client: httpx.AsyncClient, tail: bytes) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail) or 1}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = await client.post("/v2/models/embedded/infer", content=head + tail, headers=headers)
    assert (answer.status_code, answer.json().keys()) == (400, {"error"})


async def test_pixels_in_json_are_those_of_one_large_model_and_more_come_binary(client: httpx.AsyncClient) -> None:
    for side, status in ((512, 200), (600, 413)):
        pixels = np.zeros((1, side, side, 3), np.uint8).tolist()
        asked = in_json(datatype="UINT8", shape=[1, side, side, 3], data=pixels)
        answer = await client.post("/v2/models/embedded/infer", json=asked)
        assert answer.status_code == status
    assert answer.json() == {"error": "The JSON holds more than 1,200,000 values; send the pixels as a binary tensor."}
    size = {"binary_data_size": 600 * 600 * 3}
    head = json.dumps(
        {"inputs": [{"name": "image", "shape": [1, 600, 600, 3], "datatype": "UINT8", "parameters": size}]}
    )
    body, headers = head.encode() + b"," * 600 * 600 * 3, {HEADER_LENGTH: str(len(head))}
    assert (await client.post("/v2/models/embedded/infer", content=body, headers=headers)).status_code == 200


async def test_only_the_version_there_is_answers(client: httpx.AsyncClient) -> None:
    good = await client.post("/v2/models/embedded/versions/1/infer", json=in_json())
    assert (good.status_code, good.json()["model_version"]) == (200, "1")
    assert (await client.post("/v2/models/embedded/versions/2/infer", json=in_json())).status_code == 404


async def test_the_version_is_part_of_the_path_alone(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/models/embedded?version=2")).status_code == 200
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, names in (("", ["model"]), ("/versions/{version}", ["model", "version"])):
        for action in ("", "/config", "/ready", "/infer"):
            (operation,) = paths[f"/v2/models/{{model}}{path}{action}"].values()
            parameters = operation["parameters"]
            assert sorted(each["name"] for each in parameters if each["in"] != "header") == names


async def test_a_request_holds_no_more_pictures_than_may_wait() -> None:
    async with serving_engine() as engine, calling(application(engine, queue_limit=2)) as client:
        files = [base64.b64encode(png(red)).decode() for red in (1, 2, 3)]
        assert (await client.get("/v2/models/embedded/config")).json()["max_batch_size"] == 2
        answer = await client.post("/v2/models/embedded/infer", json=in_json(shape=[2], data=files[:2]))
        assert (answer.status_code, len(answer.json()["outputs"])) == (200, 3)
        answer = await client.post("/v2/models/embedded/infer", json=in_json(shape=[3], data=files))
        assert (answer.status_code, answer.json()) == (422, {"error": "A request holds 1 to 2 pictures (got 3)."})


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
async def test_callers_may_accept_either_form_of_an_answer(client: httpx.AsyncClient, kind: str) -> None:
    binary = kind == "application/octet-stream"
    asked = {**in_json(), "parameters": {"binary_data_output": binary}}
    answer = await client.post("/v2/models/embedded/infer", json=asked, headers={"accept": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    documented = InferReply.model_validate_json(answer.content[: int(answer.headers.get(HEADER_LENGTH, 1 << 20))])
    assert [(bool(each.data), bool(each.parameters)) for each in documented.outputs] == [(not binary, binary)] * 3


async def test_one_bad_picture_fails_the_request_and_is_counted_by_its_kind() -> None:
    device = FakeDevice()
    device.poison = {5}
    async with serving_engine(device) as engine, calling(application(engine)) as client:
        files = [base64.b64encode(png(red)).decode() for red in (4, 5)]
        before = outcomes()
        answer = await client.post("/v2/models/embedded/infer", json=in_json(shape=[2], data=files))
    assert (answer.status_code, answer.json().keys()) == (500, {"error"})
    assert (outcomes() - before) == {("/v2/models/{model}/infer", "inference_failed"): 1}


PERF_ANALYZER = ROOT / ".venv/perf_analyzer"
"""Where `make perf-analyzer` puts it."""


def perf_analyzer() -> list[str] | None:
    """The command, if it can be started here."""
    command = str(PERF_ANALYZER / "bin/perf_analyzer")
    if not shutil.which(command):
        return None
    started = subprocess.run([command, "--version"], env=with_its_libraries(), capture_output=True)
    return [command] if started.returncode == 0 else None


def with_its_libraries() -> dict[str, str]:
    return {**environment(), "LD_LIBRARY_PATH": str(PERF_ANALYZER / "nvidia/cuda_runtime/lib")}


@pytest.mark.skipif(perf_analyzer() is None, reason="there is no perf_analyzer; `make perf-analyzer` brings it")
@pytest.mark.parametrize("batch", [1, 4])
async def test_perf_analyzer_measures_the_service(address: str, tmp_path: Path, batch: int) -> None:
    command = perf_analyzer()
    assert command is not None
    file = png(9)
    data = base64.b64encode(struct.pack("<I", len(file)) + file).decode()
    (tmp_path / "data.json").write_text(json.dumps({"data": [{"image": {"b64": data}}]}))
    options = ["-m", "embedded", "-u", address, "-i", "http", "-b", str(batch), "-r", "3", "-s", "1000"]
    options += ["--measurement-mode", "count_windows", "--measurement-request-count", "20"]  # however busy the machine
    ended = await asyncio.to_thread(
        subprocess.run,
        [*command, *options, "--input-data", "data.json", "--concurrency-range", "2", "-f", "figures.csv"],
        cwd=tmp_path,
        env=with_its_libraries(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Throughput" in ended.stdout
    header, figures = (tmp_path / "figures.csv").read_text().splitlines()[:2]
    assert float(dict(zip(header.split(","), figures.split(","), strict=True))["Inferences/Second"]) > 0
