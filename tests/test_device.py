"""Runs on a real device: this machine's processor, and its GPU where it has one."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

import models
from models.classifier import Classifier, Seen
from models.labels import Label
from models.precision import Precision
from models.volo import VARIANTS
from service.device import Device, DeviceFault, DeviceMissing, OutOfMemory, ladder, resolve_device


def small_classifier(where: str = "cpu", precision: Precision = "float32") -> Classifier:
    """A small model of random weights."""
    torch.manual_seed(0)
    model = models.create_model(VARIANTS["volo_nano"], image_size=32, num_classes=10)
    labels = [Label(str(index)) for index in range(10)]
    return Classifier(model, name="small", crop_pct=1.0, labels=labels, device=where, precision=precision)


def small_device(where: str = "cpu", max_batch: int = 4) -> Device:
    return Device(small_classifier(where), max_batch, patience_s=60.0)


class Timed(Device):
    """Takes, by its own account, ``seconds`` for a run of each size, and ``alone_s`` for one that has all cores."""

    seconds: Mapping[int, float]
    alone_s = 1.0

    def _timed(self, size: int, alone: bool = False) -> float:
        return self.alone_s if alone else self.seconds[size]


def timed(seconds: Mapping[int, float], patience_s: float = 60.0, cores: int = 1) -> Timed:
    device = Timed(small_classifier(), max(seconds), patience_s, cores)
    device.seconds = seconds
    return device


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, [1]), (2, [1, 2]), (16, [1, 2, 4, 8, 16]), (12, [1, 2, 4, 8, 12])]
)
def test_the_ladder_is_powers_of_two_and_the_largest(max_batch: int, sizes: list[int]) -> None:
    assert ladder(max_batch) == sizes


def test_a_device_that_is_not_there_is_never_replaced_by_another() -> None:
    with pytest.raises(DeviceMissing, match=r"cuda:63 was asked for, but torch .* sees \d+ CUDA devices"):
        resolve_device("cuda:63")


def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_warming_up_runs_sizes_and_tells_what_they_cost() -> None:
    costs = small_device(max_batch=4).warm_up()
    assert next(iter(costs)) == 1
    assert all(seconds > 0 for seconds in costs.values())


@pytest.mark.parametrize(("patience_s", "sizes"), [(0.5, [1]), (1.0, [1]), (1.5, [1, 2]), (2.0, [1, 2, 4])])
def test_sizes_that_take_longer_than_patience_are_not_offered_but_the_smallest(
    patience_s: float, sizes: list[int]
) -> None:
    assert list(timed({1: 1.0, 2: 1.3, 4: 1.9}, patience_s).warm_up()) == sizes


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        ({1: 1.0, 2: 2.1, 4: 4.1}, [1]),
        ({1: 1.0, 2: 2.2, 4: 2.5, 8: 5.1}, [1, 2, 4]),  # one hiccup does not end the search
        ({1: 1.0, 2: 1.1, 4: 2.2, 8: 4.4, 16: 1.0}, [1, 2]),  # two steps without a gain do
    ],
)
def test_sizes_that_gain_nothing_are_not_offered(seconds: dict[int, float], sizes: list[int]) -> None:
    assert list(timed(seconds).warm_up()) == sizes


@pytest.mark.parametrize(("on_one_s", "threads"), [(1.0, 1), (1.5, 2)])
def test_a_lone_run_gets_all_cores_where_that_is_faster(on_one_s: float, threads: int) -> None:
    device = timed({1: on_one_s}, cores=2)
    device.warm_up()
    device.run(pictures(1), 1, alone=True)
    assert torch.get_num_threads() == threads
    device.run(pictures(1), 1)
    assert torch.get_num_threads() == 1


def test_a_picture_alone_gets_what_it_gets_in_a_padded_batch() -> None:
    device, three = small_device(), pictures(3)
    together = device.run(three, 4).logits
    assert together.shape == (3, 10)
    for row, picture in zip(together, three, strict=True):
        np.testing.assert_allclose(row, device.run([picture], 1).logits[0], atol=1e-5)


@pytest.mark.parametrize("off", [0.01, np.nan])
def test_another_answer_to_the_known_picture_is_a_fault(off: float) -> None:
    device = small_device()
    device.probe()
    device._expected = device._expected + np.float32(off)
    with pytest.raises(DeviceFault, match="known picture"):
        device.probe()
    with pytest.raises(DeviceFault, match="known picture"):
        device.warm_up()


class Choking(Classifier):
    """Has no memory for more than two pictures, and breaks on four."""

    def see(self, pixels: torch.Tensor) -> Seen:
        if len(pixels) == 4:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().see(pixels)


def choking_device(max_batch: int) -> Device:
    model = models.create_model(VARIANTS["volo_nano"], image_size=32, num_classes=2)
    return Device(Choking(model, name="choking", crop_pct=1.0, labels=[Label("a"), Label("b")]), max_batch, 60.0)


def test_a_size_without_memory_ends_the_ladder() -> None:
    assert max(choking_device(3).warm_up()) <= 2
    with pytest.raises(OutOfMemory):
        choking_device(3).run(pictures(3), 3)


def test_an_error_of_the_accelerator_is_a_fault() -> None:
    with pytest.raises(DeviceFault):
        choking_device(4).run(pictures(4), 4)


@pytest.mark.gpu
def test_the_gpu_gives_what_the_processor_gives() -> None:
    on_gpu, on_cpu, four = small_device("cuda"), small_device("cpu"), pictures(4)
    on_gpu.warm_up()
    np.testing.assert_allclose(on_gpu.run(four, 4).logits, on_cpu.run(four, 4).logits, atol=1e-2)


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_tells_what_memory_it_has_taken_and_what_there_is(name: str) -> None:
    device = small_device(name)
    device.warm_up()
    used, total = device.memory()
    assert 1_000_000 < used < total
