"""Outlook attention as one CUDA kernel: softmax, window product and overlapping sum. Imported only where it runs.

With kernel 3, stride 2 and padding 1, the window of location (i, j) lies around pixel (2i, 2j). The map is cut into
cells of two by two pixels; of a cell's pixels the first lies in one window, the next two in two, the last in four::

    (i, j) +---o---+ (i, j+1)     + centre of a window, o other pixel
           |   |   |              the cell of (i, j) is its centre, and the o to the right, below, and in the middle
           o---o---o
           |   |   |
  (i+1, j) +---o---+ (i+1, j+1)

So a program that owns cells writes each of its pixels once, sums in registers, and needs no atomics. Each of the
nine pairs of window and pixel is one row of nine logits, so a row's softmax is computed for one cell only. The five by
five pixels that a cell's windows cover are read once a cell; that neighbours read them too is left to the caches.

``python -m models.outlook_triton`` times it beside the other forms, on a GPU.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = math.log2(math.e)
_WARPS = 4
_THREADS = 32 * _WARPS
_VECTOR_BYTES = 16  # the widest that one thread loads at once


def fused_outlook(value: Tensor, logits: Tensor) -> Tensor:
    """What ``shifted_outlook(value, logits.softmax(-1))`` says, computed in float32, without gradients.

    value [B, H, W, C], logits [B, h, w, heads, 9, 9] with h = ceil(H / 2), w = ceil(W / 2) -> [B, H, W, C] in value's
    dtype. Both are float32, float16 or bfloat16; what is not contiguous is copied. It waits for nothing, and compiles
    once for each H, W, heads, C and dtypes.

    Raises:
        ValueError: the shapes do not belong together, C / heads is not a power of two, or a gradient would be lost.
    """
    if torch.is_grad_enabled() and (value.requires_grad or logits.requires_grad):
        raise ValueError("the fused kernel has no gradient: use shifted_outlook, or torch.no_grad()")
    batch, height, width, channels = value.shape
    locations = (batch, triton.cdiv(height, 2), triton.cdiv(width, 2))
    heads = logits.shape[3]
    if logits.shape != (*locations, heads, 9, 9) or channels % heads:
        raise ValueError(f"value {list(value.shape)} and logits {list(logits.shape)} do not belong together")
    dim = channels // heads
    if dim & (dim - 1):
        raise ValueError(f"{dim} channels a head are not a power of two")
    value, logits = value.contiguous(), logits.contiguous()
    out = torch.empty_like(value)
    cells = math.prod(locations)
    tile = cells_per_program(dim, value.element_size())
    with torch.cuda.device_of(value):  # Triton launches on the current device, whatever its arguments are on
        _outlook[(heads * triton.cdiv(cells, tile),)](
            value, logits, out, cells, _LOG2_E, height, width, heads, dim, tile, num_warps=_WARPS
        )
    return out


def cells_per_program(dim: int, element_size: int) -> int:
    """As many as give each thread one vector of each pixel, on maps of any size: all its loads are in flight at once.

    More would not fit its registers, and with fewer more threads would compute the same softmax.
    """
    return max(1, _THREADS * _VECTOR_BYTES // (dim * element_size))


@triton.jit(do_not_specialize=["cells"])
def _outlook(
    value: tl.tensor,
    logits: tl.tensor,
    out: tl.tensor,
    cells: tl.int32,
    scale: tl.float32,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """``TILE`` successive cells of one head; the heads of the same cells run side by side, for they share cache lines.

    value, out [B, HEIGHT, WIDTH, HEADS * DIM]; logits [cells, HEADS, 81]; ``scale`` is in powers of two.
    """
    DOWN: tl.constexpr = (HEIGHT + 1) // 2
    ACROSS: tl.constexpr = (WIDTH + 1) // 2
    CHANNELS: tl.constexpr = HEADS * DIM
    head = tl.program_id(0) % HEADS
    cell = tl.program_id(0) // HEADS * TILE + tl.arange(0, TILE)
    y = cell // ACROSS % DOWN * 2
    y = tl.where(cell < cells, y, HEIGHT + 1)  # past the last cell: outside the map, with all around it
    x = cell % ACROSS * 2

    pixel = (cell // (DOWN * ACROSS)).to(tl.int64) * (HEIGHT * WIDTH) + y * WIDTH + x
    element = pixel[:, None] * CHANNELS + (head * DIM + tl.arange(0, DIM))[None, :]
    value += element
    out += element
    logits += (cell.to(tl.int64) * HEADS + head) * 81

    # window by window, so that its nine pixels need not be kept for long
    first = _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 0, 0, 4)
    right = _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 0, 0, 5)
    below = _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 0, 0, 7)
    last = _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 0, 0, 8)
    right += _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 0, 1, 3)
    last += _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 0, 1, 6)
    below += _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 1, 0, 1)
    last += _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 1, 0, 2)
    last += _share(value, logits, scale, y, x, HEIGHT, WIDTH, HEADS, 1, 1, 0)

    # a store between loads would make the compiler load again what it has
    across, down = (x + 1 < WIDTH)[:, None], (y + 1 < HEIGHT)[:, None]
    tl.store(out, first, (y < HEIGHT)[:, None])
    tl.store(out + CHANNELS, right, (y < HEIGHT)[:, None] & across)
    tl.store(out + WIDTH * CHANNELS, below, down)
    tl.store(out + (WIDTH + 1) * CHANNELS, last, down & across)


@triton.jit
def _share(
    value: tl.tensor,
    logits: tl.tensor,
    scale: tl.float32,
    y: tl.tensor,
    x: tl.tensor,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    PLACE: tl.constexpr,
) -> tl.tensor:
    """What the window ``DOWN`` and ``RIGHT`` of each cell's own gives to its ``PLACE`` of nine: [cells, DIM] float32.

    value [cells, DIM] points to the cells' first pixels, which are at ``y``, ``x``; logits [cells] to their windows.
    """
    exists = (y + 2 * DOWN < HEIGHT) & (x + 2 * RIGHT < WIDTH)
    row = logits + (DOWN * ((WIDTH + 1) // 2) + RIGHT) * HEADS * 81 + PLACE * 9
    largest = tl.load(row, exists, 0.0).to(tl.float32)
    for k in tl.static_range(1, 9):
        largest = tl.maximum(largest, tl.load(row + k, exists, 0.0).to(tl.float32))
    largest *= scale
    total = tl.full(largest.shape, 0.0, tl.float32)
    mixed = tl.full(value.shape, 0.0, tl.float32)
    for k in tl.static_range(9):  # what was loaded before is not loaded again: the compiler sees that it is the same
        weight = tl.exp2(tl.load(row + k, exists, 0.0).to(tl.float32) * scale - largest)
        dy = 2 * DOWN + k // 3 - 1
        dx = 2 * RIGHT + k % 3 - 1
        inside = ((y + dy >= 0) & (y + dy < HEIGHT)) & ((x + dx >= 0) & (x + dx < WIDTH))
        pixel = tl.load(value + (dy * WIDTH + dx) * HEADS * value.shape[1], inside[:, None], 0.0)
        mixed += weight[:, None] * pixel.to(tl.float32)
        total += weight
    return mixed * tl.where(exists, 1.0 / total, 0.0)[:, None]


def _compare(batch: int = 64) -> None:
    """Time the three forms in bfloat16 on every map of the catalogue; bytes are those read and written at least."""
    from models.outlook import shifted_outlook, unfolded_outlook
    from models.volo import VARIANTS
    from models.zoo import CATALOGUE

    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "fused": fused_outlook,
        "shifted": lambda value, logits: shifted_outlook(value, logits.softmax(-1)),
        "unfolded": lambda value, logits: unfolded_outlook(value, logits.softmax(-1), 3, 2, 1),
    }
    for name, model in CATALOGUE.items():
        variant = VARIANTS[model.variant]
        side = model.image_size // variant.patch_size
        half = triton.cdiv(side, 2)
        value = torch.randn(batch, side, side, variant.dims[0], device="cuda", dtype=torch.bfloat16)
        logits = torch.randn(batch, half, half, variant.heads[0], 9, 9, device="cuda", dtype=torch.bfloat16)
        for form, mix in forms.items():
            median_ms = triton.testing.do_bench(partial(mix, value, logits), return_mode="median")
            rate = (2 * value.nbytes + logits.nbytes) / median_ms / 1e6
            print(f"{name:12} {form:8} {median_ms * 1e3:8.1f} us {rate:6.0f} GB/s")


if __name__ == "__main__":
    _compare()
