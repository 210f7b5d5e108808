"""In which floating-point format a model computes."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype for a name; ``auto`` is bfloat16 where the device computes in it natively, else float32.

    Raises:
        ValueError: float16 on a CPU, which would be slower and overflow, or a name that is none of these.
    """
    match precision:
        case "auto":
            return torch.bfloat16 if native_bfloat16(device) else torch.float32
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float16" if device.type == "cuda":
            return torch.float16
    raise ValueError(f"precision {precision!r} is not for a {device.type}; there are auto, float32, bfloat16")


def native_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own: CUDA, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
