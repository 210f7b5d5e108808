"""The crop is the reference evaluation transform, for pictures of every size and aspect."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import crop

GOLDEN = Path(__file__).parent / "golden"


def noise(width: int, height: int) -> Image.Image:
    """An RGB picture of noise, mild enough that bicubic overshoot is never clipped."""
    pixels = np.random.default_rng(width * 1000 + height).integers(60, 196, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def reference(image: Image.Image, size: int, crop_pct: float) -> NDArray[np.uint8]:
    """torchvision's Resize, pad and CenterCrop, with the whole picture resized."""
    shorter = math.floor(size / crop_pct)
    width, height = image.size
    if width <= height:
        resized = image.resize((shorter, int(shorter * height / width)), Image.Resampling.BICUBIC)
    else:
        resized = image.resize((int(shorter * width / height), shorter), Image.Resampling.BICUBIC)
    pad_x, pad_y = max(0, size - resized.width), max(0, size - resized.height)
    padded = Image.new("RGB", (resized.width + pad_x, resized.height + pad_y))
    padded.paste(resized, (pad_x // 2, pad_y // 2))
    left, top = round((padded.width - size) / 2.0), round((padded.height - size) / 2.0)
    return np.asarray(padded.crop((left, top, left + size, top + size)))


def largest_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize(
    ("name", "size", "crop_pct"),
    [("landscape_224", 224, 0.96), ("portrait_384", 384, 1.0), ("padded_448", 448, 1.15)],
)
def test_a_crop_equals_the_golden_one_to_within_one_grey_level(name: str, size: int, crop_pct: float) -> None:
    with np.load(GOLDEN / "preprocess.npz") as golden, Image.open(GOLDEN / f"{name}.png") as image:
        assert largest_difference(crop(image, size, crop_pct), golden[name]) <= 1


@settings(deadline=None)
@given(st.integers(6, 90), st.integers(6, 90), st.integers(4, 40), st.sampled_from([0.875, 0.96, 1.0, 1.15]))
def test_a_crop_of_any_size_equals_the_reference(width: int, height: int, size: int, crop_pct: float) -> None:
    image = noise(width, height)
    assert (crop(image, size, crop_pct) == reference(image, size, crop_pct)).all()


@settings(deadline=None)
@given(st.integers(6, 90), st.integers(6, 90), st.integers(4, 40), st.sampled_from([0.875, 0.96, 1.0, 1.15]))
def test_a_fast_crop_is_the_exact_one_but_for_rounding(width: int, height: int, size: int, crop_pct: float) -> None:
    image = noise(width, height)
    fast = crop(image, size, crop_pct, within=(0, 0, width, height))
    # Pillow rounds twice, to whole grey levels after each axis: a level from the first may become two in the second.
    assert largest_difference(fast, crop(image, size, crop_pct)) <= 2


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(17, 40), st.booleans(), st.sampled_from([0.96, 1.0, 1.15]))
def test_a_strip_cut_before_it_is_resized_equals_the_reference_but_for_rounding(
    width: int, aspect: int, lying: bool, crop_pct: float
) -> None:
    image = noise(width * aspect, width) if lying else noise(width, width * aspect)
    assert largest_difference(crop(image, 24, crop_pct), reference(image, 24, crop_pct)) <= 2


@pytest.mark.parametrize("size", [(1, 4_000), (50_000, 1), (3, 1_000_000), (1, 1)])
def test_a_picture_too_narrow_to_be_resized_whole_is_cropped_all_the_same(size: tuple[int, int]) -> None:
    pixels = crop(Image.new("RGB", size, (10, 20, 30)), 224, 0.96)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == (10, 20, 30)).all()


def test_a_crop_larger_than_the_resized_picture_has_a_black_border() -> None:
    pixels = crop(Image.new("RGB", (640, 480), "white"), 448, 1.15)
    assert not pixels[:29].any()
    assert not pixels[29 + 389 :].any()
    assert (pixels[29 : 29 + 389] == 255).all()


def test_a_crop_is_written_into_the_array_it_is_given_whatever_was_there() -> None:
    image = noise(64, 48)
    out = np.full((32, 32, 3), 77, np.uint8)
    assert crop(image, 32, 1.15, out) is out
    assert (out == crop(image, 32, 1.15)).all()


def test_only_rgb_is_cropped() -> None:
    with pytest.raises(ValueError, match="not L"):
        crop(Image.new("L", (8, 8)), 4, 1.0)


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        crop(noise(8, 8), 4, 1.0, np.empty((5, 4, 3), np.uint8))
