"""Outlook attention against reference outputs, and its fast form against the paper's."""

from typing import NamedTuple

import pytest
import torch
from golden_weights import fill, noise, outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.outlook import OutlookAttention, shifted_outlook, unfolded_outlook

EXPECTED = outputs("outlook_attention.npz")


class Case(NamedTuple):
    dim: int
    heads: int
    stride: int
    bias: bool
    shape: tuple[int, int, int]


CASES = {
    "k3s2": Case(192, 6, 2, False, (2, 28, 28)),
    "k3s2_odd": Case(64, 2, 2, False, (1, 15, 13)),
    "k3s1": Case(32, 1, 1, True, (2, 14, 14)),
    "k3s2_one": Case(48, 3, 2, True, (1, 1, 1)),
}


def layer(dim: int = 8, heads: int = 2, kernel: int = 3, padding: int = 1, stride: int = 2) -> OutlookAttention:
    attention = OutlookAttention(dim, heads, kernel_size=kernel, padding=padding, stride=stride).double().eval()
    fill(attention)
    return attention


@pytest.mark.parametrize("name", CASES)
def test_the_layer_computes_what_the_reference_does(name: str) -> None:
    case = CASES[name]
    attention = OutlookAttention(case.dim, case.heads, stride=case.stride, qkv_bias=case.bias)
    fill(attention)
    _, height, width = case.shape
    with torch.inference_mode():
        got = attention(noise(height * 100 + width, *case.shape, case.dim).float())
    sample = got[:, ::3, ::3, ::4] if name == "k3s2" else got
    torch.testing.assert_close(sample, EXPECTED[name], atol=2e-6, rtol=2e-6)


@given(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_fast_form_is_the_unfolded_one(batch: int, height: int, width: int, heads: int, seed: int) -> None:
    value = noise(seed, batch, height, width, heads * 2).requires_grad_()
    weights = noise(seed + 1, batch, -(-height // 2), -(-width // 2), heads, 9, 9).requires_grad_()
    upstream = noise(seed + 2, *value.shape)

    def with_gradients(mixed: Tensor) -> tuple[Tensor, ...]:
        return mixed, *torch.autograd.grad((mixed * upstream).sum(), (value, weights))

    fast, unfolded = shifted_outlook(value, weights), unfolded_outlook(value, weights, 3, 2, 1)
    torch.testing.assert_close(with_gradients(fast), with_gradients(unfolded), atol=1e-12, rtol=1e-12)


@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_kernel_as_wide_as_its_padding_fits_every_map(padding: int, stride: int, height: int, width: int) -> None:
    attention = layer(kernel=2 * padding + 1, padding=padding, stride=stride)
    x = noise(0, 1, height, width, 8)
    with torch.inference_mode():
        assert attention(x).shape == x.shape


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 0), (3, 1, 0), (5, 2, 1), (3, 2, 2), (1, 2, 1), (9, 3, 1)]
)
def test_windows_that_do_not_fit_the_map_are_a_clear_error(kernel: int, stride: int, padding: int) -> None:
    attention = layer(kernel=kernel, stride=stride, padding=padding)
    with pytest.raises(ValueError, match=rf"kernel {kernel}, stride {stride}, padding {padding} give .* on 6x5"):
        attention(noise(0, 1, 6, 5, 8))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(0, 1, 0), (3, 0, 1), (3, 1, -1)])
def test_no_window_at_all_is_refused(kernel: int, stride: int, padding: int) -> None:
    with pytest.raises(ValueError, match="give no window"):
        OutlookAttention(8, 2, kernel_size=kernel, stride=stride, padding=padding)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="dim 8 is not a multiple of num_heads 3"):
        OutlookAttention(8, 3)
