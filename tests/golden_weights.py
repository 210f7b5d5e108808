"""Golden data: weights by the formula that the reference outputs were computed with, and those outputs."""

import math
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"


def fill(module: nn.Module) -> None:
    """Gives every entry of the module's state dict the value that the formula makes of its name."""
    state = module.state_dict()
    module.load_state_dict({name: golden_weight(name, tuple(tensor.shape)) for name, tensor in state.items()})


@lru_cache(maxsize=1024)  # D1's weights serve two image sizes
def golden_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.tensor(0)
    w = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if kind == "running_var":
        value = 0.5 + np.abs(w)
    elif kind == "weight":
        value = 1 + 0.1 * w if len(shape) == 1 else w / math.sqrt(math.prod(shape[1:]))
    else:
        value = (0.1 if kind in ("running_mean", "bias") else 0.2) * w
    return torch.from_numpy(np.float32(value)) if value.ndim else torch.tensor(value)


def noise(seed: int, *shape: int) -> Tensor:
    """The input of a golden case, in float64."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def outputs(file: str) -> dict[str, Any]:
    with np.load(GOLDEN / file) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
