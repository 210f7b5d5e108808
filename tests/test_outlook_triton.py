"""The fused kernel against the paper's form in float64: on a GPU as it is, elsewhere in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from models.outlook import unfolded_outlook
from models.outlook_triton import fused_outlook
from models.volo import VARIANTS
from models.zoo import CATALOGUE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}

PUBLISHED = sorted(
    {
        (model.image_size // (VARIANTS[model.variant].patch_size), *_stage)
        for model in CATALOGUE.values()
        if model.name != "embedded"
        for _stage in [(VARIANTS[model.variant].heads[0], VARIANTS[model.variant].dims[0])]
    }
)
"""Side of the map, heads and channels of each published model's first stage."""


def tensors(
    batch: int, height: int, width: int, heads: int, channels: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    value = torch.randn(batch, height, width, channels, dtype=dtype)
    logits = 3 * torch.randn(batch, -(-height // 2), -(-width // 2), heads, 9, 9, dtype=dtype)
    return value.to(DEVICE), logits.to(DEVICE)


def exact(value: Tensor, logits: Tensor) -> Tensor:
    return unfolded_outlook(value.double(), logits.double().softmax(-1), 3, 2, 1)


def assert_exact(value: Tensor, logits: Tensor) -> None:
    with torch.no_grad():
        mixed = fused_outlook(value, logits)
    assert mixed.dtype is value.dtype
    tolerance = TOLERANCE[value.dtype]
    torch.testing.assert_close(mixed.double(), exact(value, logits), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("batch", "height", "width", "heads", "channels"),
    [(1, 1, 1, 1, 16), (1, 2, 2, 1, 32), (2, 5, 7, 2, 64), (1, 8, 6, 3, 96), (3, 4, 9, 1, 64), (1, 14, 14, 1, 32)],
)
def test_the_kernel_gives_what_the_papers_form_gives(
    batch: int, height: int, width: int, heads: int, channels: int
) -> None:
    assert_exact(*tensors(batch, height, width, heads, channels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_read_and_written_but_not_computed_in(dtype: torch.dtype) -> None:
    assert_exact(*tensors(1, 6, 6, 2, 64, dtype))


def test_logits_of_any_size_make_no_infinity() -> None:
    value, logits = tensors(1, 4, 4, 1, 32)
    assert_exact(value, logits * 1e4)


def test_tensors_that_do_not_lie_in_one_piece_are_read_right() -> None:
    value, logits = tensors(2, 4, 6, 2, 64)
    assert_exact(value.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3), logits.mT.contiguous().mT)


def test_no_gradient_is_lost_in_silence() -> None:
    value, logits = tensors(1, 2, 2, 1, 32)
    with pytest.raises(ValueError, match="no gradient"):
        fused_outlook(value.requires_grad_(), logits)


@pytest.mark.parametrize("wrong", [(1, 2, 2, 1, 48), (1, 2, 4, 1, 32)])
def test_shapes_that_it_cannot_do_are_refused(wrong: tuple[int, int, int, int, int]) -> None:
    _, logits = tensors(1, 2, 2, 1, 32)
    value, _ = tensors(*wrong)
    with pytest.raises(ValueError, match=r"belong together|power of two"):
        fused_outlook(value, logits)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("side", "heads", "channels"), PUBLISHED)
def test_every_published_shape_is_right_on_a_gpu(
    side: int, heads: int, channels: int, batch: int, dtype: torch.dtype
) -> None:
    assert_exact(*tensors(batch, side, side, heads, channels, dtype))


@pytest.mark.gpu
def test_the_kernel_can_be_captured_in_a_graph() -> None:
    value, logits = tensors(2, 28, 28, 6, 192)
    with torch.no_grad():
        fused_outlook(value, logits)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            mixed = fused_outlook(value, logits)
        value.copy_(torch.randn_like(value))
        graph.replay()
    torch.testing.assert_close(mixed.double(), exact(value, logits), atol=1e-5, rtol=1e-5)
