"""Contenders timed in turn, what they are set against, and the memory that they need."""

import mmap

import pytest
import torch

from service.bench import contender, memory
from service.bench.forward import classifier, product
from service.bench.lanes import compare
from service.bench.photos import SIZES, Size, photos
from service.bench.pictures import read
from service.bench.preprocess import View, Way, measure
from service.bench.timing import Timing, alternate

CPU = torch.device("cpu")


def test_a_ratio_is_that_of_rounds_that_were_disturbed_alike() -> None:
    ours = Timing([[1.0, 1.0], [10.0, 10.0], [1.0, 1.0]])
    theirs = Timing([[2.0], [20.0], [2.0]])
    assert ours.against(theirs) == 2.0


def test_contenders_are_run_in_turn() -> None:
    order: list[str] = []
    parts: list[float] = []
    timings = alternate([lambda: order.append("a"), lambda: order.append("b")], 0.001, CPU, parts.append)
    assert [len(timing.rounds_s) for timing in timings] == [5, 5]
    assert parts == [0.0, 0.2, 0.4, 0.6, 0.8]
    turns = [name for place, name in enumerate(order[8:]) if order[8:][place - 1] != name]
    assert turns == ["a", "b"] * 5


def test_a_published_model_is_timed_without_its_weights() -> None:
    built = classifier("volo_d1_224", CPU, "float32")
    assert (built.name, built.image_size, len(built.labels)) == ("volo_d1_224", 224, 1000)


def test_the_embedded_model_is_timed_with_its_own() -> None:
    built = classifier("embedded", CPU, "float32")
    pixels = torch.zeros(1, built.image_size, built.image_size, 3, dtype=torch.uint8)
    assert torch.equal(built.scores(pixels), classifier("embedded", CPU, "float32").scores(pixels))


def test_a_product_is_large_and_its_multiply_adds_are_its_sides() -> None:
    run, multiply_adds = product(CPU, torch.float32)
    run()
    side = round(multiply_adds ** (1 / 3))
    assert multiply_adds == side**3
    assert side >= 256


def test_both_ways_to_use_the_cores_are_timed() -> None:
    threads = torch.get_num_threads()
    try:
        lanes = compare(classifier("embedded", CPU, "float32"), batch=1, threads=2, seconds=0.05)
    finally:
        torch.set_num_threads(threads)
    assert lanes.one_run > 0
    assert lanes.one_thread_runs > 0
    assert lanes.ratio > 0


def test_the_most_memory_in_use_is_seen_though_it_is_given_back() -> None:
    size = 50_000_000

    def borrow() -> None:
        with mmap.mmap(-1, size) as area:  # from the system itself: what malloc gives may have been ours before
            for page in range(0, size, mmap.PAGESIZE):
                area[page] = 1

    before = memory.used_bytes(CPU)
    assert memory.peak_bytes(borrow, CPU) - before > 0.9 * size


def test_a_model_that_timm_does_not_have_is_no_contender() -> None:
    with pytest.raises(contender.NoContender, match="timm"):
        contender.timm_forward(classifier("embedded", CPU, "float32"), 1)


def test_the_samples_become_photos_of_a_size_and_the_same_ones_every_time() -> None:
    size = Size("small", 100, 75, 18.0)
    first = photos(size)
    assert first == photos(size)
    assert len(first) == len(read(None)) == 4


def test_photos_of_the_smallest_size_have_files_as_long_as_is_common() -> None:
    lengths = [len(photo) for photo in photos(SIZES[0])]
    assert 90_000 < sum(lengths) / len(lengths) < 130_000


@pytest.mark.parametrize("exact", [True, False])
def test_a_photo_s_decoding_and_cropping_are_timed_apart(exact: bool) -> None:
    files = photos(Size("small", 100, 75, 18.0))
    row = measure("small", files, View("embedded", 64, 1.0), Way(50_000_000, exact), seconds=0.0)
    assert row.mean_bytes == sum(map(len, files)) // 4
    assert row.decode_ms > 0
    assert row.crop_ms > 0
    assert row.photos_per_s == pytest.approx(1e3 / (row.decode_ms + row.crop_ms))
