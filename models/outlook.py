"""Outlook attention, the layer that gives the Vision Outlooker its name (arXiv 2106.13112, section 3.1).

Every output location attends over the k x k window around it. Unlike self-attention it compares nothing: one linear
layer of the location's own feature says how the window's k*k places weigh on each other. The weighted windows overlap,
and are summed where they do.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OutlookAttention(nn.Module):
    """Outlook attention on a map of features: x [B, H, W, C] -> [B, H, W, C], any H and W.

    The map of windows has ``h = ceil(H / stride)`` by ``w = ceil(W / stride)`` locations. A kernel of
    ``2 * padding + 1`` gives every location its window on a map of any size; others do on some.

    Raises:
        ValueError: ``dim`` is not a multiple of ``num_heads``, or kernel, stride or padding are too small; when
            called: they do not give every location of this map one window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 3,
        padding: int = 1,
        stride: int = 2,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if kernel_size < 1 or stride < 1 or padding < 0:
            raise ValueError(f"kernel {kernel_size}, stride {stride}, padding {padding} give no window at all")
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.padding = padding
        self.stride = stride
        self.scale = (dim // num_heads) ** -0.5
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn = nn.Linear(dim, num_heads * kernel_size**4)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self._mixed(self.v(x), self._logits(x)))

    def _logits(self, x: Tensor) -> Tensor:
        """How each window's places weigh on one another, before the softmax: [B, h, w, heads, k*k, k*k]."""
        centre = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride, self.stride, ceil_mode=True).permute(0, 2, 3, 1)
        k2 = self.kernel_size**2
        logits = self.attn(centre).unflatten(-1, (self.num_heads, k2, k2))
        return logits if self.scale == 1.0 else logits * self.scale  # it is one when folded into the weights

    def _mixed(self, value: Tensor, logits: Tensor) -> Tensor:
        """Windows weighed and summed, in the form that is fastest here: [B, H, W, C]."""
        k, s, p = self.kernel_size, self.stride, self.padding
        if (k, s, p) != (3, 2, 1):
            return unfolded_outlook(value, logits.softmax(dim=-1), k, s, p)
        if value.is_cuda and not torch.is_grad_enabled() and self._fits_kernel(value):
            from models.outlook_triton import fused_outlook  # here, because there is no Triton without CUDA

            return fused_outlook(value, logits)
        return shifted_outlook(value, logits.softmax(dim=-1))

    def _fits_kernel(self, value: Tensor) -> bool:
        head_dim = value.shape[-1] // self.num_heads
        return head_dim.bit_count() == 1 and value.dtype in (torch.float32, torch.float16, torch.bfloat16)


def unfolded_outlook(value: Tensor, weights: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """The paper's form, for any kernel, stride and padding: unfold, weigh, fold.

    value [B, H, W, C], weights [B, h, w, heads, k*k, k*k] -> [B, H, W, C].

    Raises:
        ValueError: there is not one window for each of the h by w weights.
    """
    batch, height, width, channels = value.shape
    _, h, w, heads, k2, _ = weights.shape
    down, across = ((side + 2 * padding - kernel_size) // stride + 1 for side in (height, width))
    if (down, across) != (h, w):
        raise ValueError(
            f"kernel {kernel_size}, stride {stride}, padding {padding} give {down}x{across} windows on "
            f"{height}x{width}, outlook attention needs {h}x{w}"
        )
    columns = F.unfold(value.permute(0, 3, 1, 2), kernel_size, padding=padding, stride=stride)  # B, C*k*k, h*w
    windows = columns.view(batch, heads, channels // heads, k2, h * w).permute(0, 4, 1, 3, 2)  # B, h*w, heads, k*k, d
    mixed = weights.flatten(1, 2) @ windows  # B, h*w, heads, k*k, d
    columns = mixed.permute(0, 2, 4, 3, 1).reshape(batch, channels * k2, h * w)
    folded = F.fold(columns, (height, width), kernel_size, padding=padding, stride=stride)
    return folded.permute(0, 2, 3, 1)


def shifted_outlook(value: Tensor, weights: Tensor) -> Tensor:
    """Kernel 3, stride 2, padding 1 without unfold and fold: windows are a strided view, overlaps nine shifted sums.

    value [B, H, W, C], weights [B, h, w, heads, 9, 9] -> [B, H, W, C].
    """
    _, height, width, _ = value.shape
    _, h, w, heads, _, _ = weights.shape
    # one row and column before, and as many after as the last window of an even or odd map needs
    padded = F.pad(value, (0, 0, 1, 2 * w - width, 1, 2 * h - height)).unflatten(-1, (heads, -1))
    windows = padded.unfold(1, 3, 2).unfold(2, 3, 2)  # B, h, w, heads, d, 3, 3: a view
    windows = windows.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)  # B, h, w, heads, 9, d
    mixed = weights @ windows  # B, h, w, heads, 9, d
    summed = torch.zeros_like(padded)
    for place, (rows, columns) in enumerate(_places(h, w)):
        summed[:, rows, columns] += mixed[..., place, :]
    return summed[:, 1 : height + 1, 1 : width + 1].flatten(-2)


def _places(h: int, w: int) -> Iterator[tuple[slice, slice]]:
    """For each of the nine places of a window: the rows and columns it has over all h by w windows."""
    for row in range(3):
        for column in range(3):
            yield slice(row, row + 2 * h - 1, 2), slice(column, column + 2 * w - 1, 2)
