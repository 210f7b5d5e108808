import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.augment import Augment, Mixed

CPU = torch.device("cpu")
SEEDS = range(40)
"""Enough draws for every way of mixing to come up."""


def noise(batch: int = 6, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (batch, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def mixed_alone(strength: float, seed: int, pictures: Tensor) -> Mixed:
    """Only mixed, neither cropped nor coloured nor erased."""
    return Augment(strength, seed, CPU)._mix(pictures.float(), grid=4)


@given(st.floats(0, 1), st.integers(0, 1000), st.integers(1, 5), st.sampled_from([(16, 2), (16, 4), (24, 3)]))
@settings(max_examples=40, deadline=None)
def test_shapes_and_range_are_kept(strength: float, seed: int, batch: int, size_and_grid: tuple[int, int]) -> None:
    size, grid = size_and_grid
    mixed = Augment(strength, seed, CPU)(noise(batch, size), grid)
    assert mixed.pictures.shape == (batch, 3, size, size)
    assert mixed.pictures.dtype == torch.float32
    assert 0 <= float(mixed.pictures.min()) <= float(mixed.pictures.max()) <= 255
    assert sorted(mixed.partner.tolist()) == list(range(batch))
    assert mixed.share.shape == (batch, grid, grid)
    assert 0 <= float(mixed.share.min()) <= float(mixed.share.max()) <= 1


def test_without_strength_pictures_are_at_most_flipped() -> None:
    pictures = noise(32)
    mixed = Augment(0, 0, CPU)(pictures, grid=4)
    kept, flipped = (
        (mixed.pictures - wanted).abs().amax(dim=(1, 2, 3)) < 0.01 for wanted in (pictures, pictures.flip(-1))
    )
    assert bool((kept | flipped).all())
    assert 0 < int(flipped.sum()) < 32
    assert not mixed.share.any()


def test_the_same_seed_draws_the_same_and_another_draws_another() -> None:
    once, again, other = (Augment(1, seed, CPU)(noise(), grid=4) for seed in (1, 1, 2))
    assert all(torch.equal(one, same) for one, same in zip(once, again, strict=True))
    assert not torch.equal(once.pictures, other.pictures)


def test_every_batch_is_drawn_anew() -> None:
    augment = Augment(1, 0, CPU)
    assert not torch.equal(augment(noise(), 4).pictures, augment(noise(), 4).pictures)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_patch_holds_its_share_of_the_partner(seed: int) -> None:
    pictures = noise().float()
    mixed = mixed_alone(1, seed, noise())
    for index, partner in enumerate(mixed.partner.tolist()):
        for row in range(4):
            for column in range(4):
                patch = (index, slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
                share = mixed.share[index, row, column]
                wanted = (1 - share) * pictures[patch] + share * pictures[partner, *patch[1:]]
                torch.testing.assert_close(mixed.pictures[patch], wanted, atol=1e-3, rtol=0)


def test_batches_are_cut_or_blended_or_left_alone() -> None:
    shares = [mixed_alone(1, seed, noise()).share for seed in SEEDS]
    blended = [share for share in shares if ((share > 0) & (share < 1)).any()]
    cut = [share for share in shares if share.any() and not ((share > 0) & (share < 1)).any()]
    untouched = [share for share in shares if not share.any()]
    assert min(len(blended), len(cut), len(untouched)) > 0
    for share in blended:  # evenly all over a picture, and never more than half of the partner
        assert bool((share == share[:, :1, :1]).all())
        assert float(share.max()) <= 0.5


def test_a_cut_is_a_box() -> None:
    for seed in SEEDS:
        for share in mixed_alone(1, seed, noise()).share:
            if bool((share.int() == share).all()):
                rows, columns = share.amax(dim=1), share.amax(dim=0)
                assert torch.equal(share, rows[:, None] * columns)


def test_erasing_leaves_most_pictures_alone() -> None:
    pictures = noise(400).float()
    changed = (Augment(1, 0, CPU)._erase(pictures) != pictures).any(dim=1).float().mean(dim=(1, 2))  # part of the area
    assert 0.15 < float((changed > 0).float().mean()) < 0.3
    assert float(changed.max()) < 0.5


def test_grey_pictures_stay_grey_whatever_the_saturation() -> None:
    grey = torch.rand(8, 1, 4, 4).expand(8, 3, 4, 4) * 255
    coloured = Augment(1, 0, CPU)._colour(grey)
    torch.testing.assert_close(coloured[:, :1].expand_as(coloured), coloured, atol=1e-3, rtol=0)
