"""Where a label is: the loudest patch, its place in the picture, and the picture of the map."""

import numpy as np
import pytest
import torch

import models
from models.evidence import Patch, box, loudest, overlay
from models.preprocess import region
from models.volo import VARIANTS


def test_the_loudest_patch_is_where_the_map_is_highest() -> None:
    patches = np.zeros((4, 4), np.float32)
    patches[1, 3] = 0.5
    assert loudest(patches) == Patch(row=1, column=3)


def test_the_evidence_is_what_the_logits_rest_on() -> None:
    torch.manual_seed(0)
    model = models.create_model(VARIANTS["volo_nano"], image_size=32, num_classes=7).eval()
    with torch.inference_mode():
        tokens = model.tokens(torch.randn(3, 3, 32, 32))
        heads = model.heads(tokens)
        classes = torch.tensor([[0, 6], [3, 3], [5, 1]])
        maps = model.evidence(tokens, classes)
        assert maps.shape == (3, 2, 4, 4)
        torch.testing.assert_close(maps.flatten(2), heads.aux.transpose(1, 2)[torch.arange(3)[:, None], classes])
        spoken = heads.cls.gather(1, classes) + 0.5 * maps.amax(dim=(2, 3))
        torch.testing.assert_close(spoken, heads.logits().gather(1, classes))


@pytest.mark.parametrize(
    ("image_size", "size", "crop_pct", "seen"),
    [
        ((100, 100), 50, 1.0, (0, 0, 1, 1)),
        ((200, 100), 50, 1.0, (0.25, 0, 0.75, 1)),
        ((100, 200), 50, 0.5, (0.25, 0.375, 0.75, 0.625)),
        ((400, 400), 46, 1.15, (-0.075, -0.075, 1.075, 1.075)),
    ],
)
def test_the_region_is_what_the_crop_leaves_of_the_picture(
    image_size: tuple[int, int], size: int, crop_pct: float, seen: tuple[float, ...]
) -> None:
    assert region(image_size, size, crop_pct) == pytest.approx(seen)


def test_a_patchs_box_is_its_share_of_the_region() -> None:
    assert box(Patch(0, 0), 4, (0.0, 0.0, 1.0, 1.0)) == pytest.approx((0, 0, 0.25, 0.25))
    assert box(Patch(3, 1), 4, (0.25, 0.0, 0.75, 1.0)) == pytest.approx((0.375, 0.75, 0.5, 1.0))


def test_an_overlay_is_clear_where_the_map_is_quiet_and_bright_where_it_is_loud() -> None:
    patches = np.zeros((4, 4), np.float32)
    patches[0, 0] = 3
    image = overlay(patches, 64)
    assert (image.mode, image.size) == ("RGBA", (64, 64))
    pixels = np.asarray(image)
    assert pixels[8, 8, 3] > 150
    assert pixels[8, 8, :3].sum() > 400
    assert pixels[48:, 48:, 3].max() == 0


def test_an_even_map_is_no_evidence_for_any_place() -> None:
    assert not np.asarray(overlay(np.full((2, 2), 7.0, np.float32), 8))[..., 3].any()
