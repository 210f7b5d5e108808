"""Python, torch, CUDA and its driver: whether they fit together, and which devices there are."""

import ctypes
import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from service.doctor.findings import Finding, failed, warning, well
from service.settings import Settings

LEAST_FREE_BYTES = 2_000_000_000
"""Of a card's memory: what a large model and its graphs take."""


@dataclass(frozen=True)
class Card:
    """A CUDA device; memory in bytes."""

    name: str
    free: int
    total: int


@dataclass(frozen=True)
class Cuda:
    """What is known of CUDA here.

    ``built`` is the version that torch was built for, None without CUDA; ``driver`` the newest that the driver can do,
    None without a driver; ``error`` what torch says when it is asked for its devices and has none.
    """

    torch: str
    built: tuple[int, int] | None
    driver: tuple[int, int] | None
    cards: tuple[Card, ...]
    error: str = ""


def packages() -> Iterator[Finding]:
    """The versions that matter in a report of a fault."""
    names = ("volo-serve", "torch", "fastapi", "uvicorn", "pillow", "numpy")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    yield well("Software", f"Python {platform.python_version()}, {found}")


def cuda(settings: Settings) -> Iterator[Finding]:
    """Whether torch and the driver agree, and the device that is set is there."""
    return judge(settings.device, look())


def look() -> Cuda:
    """What there is."""
    import torch

    error = ""
    cards: tuple[Card, ...] = ()
    if torch.version.cuda:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            cards = tuple(_card(index) for index in range(torch.cuda.device_count()))
        except (RuntimeError, AssertionError) as raised:
            error = str(raised).partition("\n")[0]
    built = torch.version.cuda
    return Cuda(torch.__version__, _pair(built) if built else None, driver_version(), cards, error)


def _card(index: int) -> Card:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return Card(torch.cuda.get_device_name(index), free, total)


def _pair(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the installed driver can do, as the driver itself says."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


def judge(device: str, cuda: Cuda) -> Iterator[Finding]:
    """What to make of it, for the device that is set."""
    wanted = device.startswith("cuda")
    bad = failed if wanted else warning
    if device == "cpu":
        yield well("Device", f"the processor, as is set; torch {cuda.torch}")
    elif cuda.cards:
        yield from _judge_cards(device, cuda)
    elif cuda.driver is None:
        if wanted:
            advice = "Install the driver; a container needs NVIDIA's container toolkit and --gpus all."
            without = "" if cuda.built else f", and torch {cuda.torch} is without CUDA"
            yield failed("Device", f"{device} is set, and there is no NVIDIA driver{without}", advice)
        else:
            yield well("Device", f"the processor: there is no NVIDIA driver; torch {cuda.torch}")
    elif cuda.built is None:
        advice = "Install torch with CUDA; in the image, build without TORCH_INDEX."
        yield bad("Device", f"there is a driver, but torch {cuda.torch} is without CUDA", advice)
    elif cuda.driver[0] < cuda.built[0]:
        advice = "Update the driver, or install torch built for an older CUDA."
        yield bad(
            "Device", f"the driver goes up to CUDA {_dotted(cuda.driver)}, torch wants {_dotted(cuda.built)}", advice
        )
    else:
        advice = "Is the card visible (nvidia-smi, CUDA_VISIBLE_DEVICES, --gpus all)? Was it lost (dmesg | grep Xid)?"
        yield bad("Device", f"there is a driver, and no card: {cuda.error or 'torch sees none'}", advice)


def _judge_cards(device: str, cuda: Cuda) -> Iterator[Finding]:
    index = int(device.partition(":")[2] or 0)
    if index >= len(cuda.cards):
        yield failed("Device", f"{device} is set, and there are {len(cuda.cards)}", "Set one that is there.")
        return
    card = cuda.cards[index]
    found = f"{card.name}, {card.free / 1e9:.1f} of {card.total / 1e9:.1f} GB free; torch {cuda.torch}"
    if cuda.driver and cuda.built:
        found += f", built for CUDA {_dotted(cuda.built)}; the driver goes up to {_dotted(cuda.driver)}"
    if card.free < LEAST_FREE_BYTES:
        yield warning("Device", found, "See who else uses the card: nvidia-smi.")
    else:
        yield well("Device", found)
    yield from _kernels()


def _kernels() -> Iterator[Finding]:
    """Triton compiles a launcher at its first kernel, unless its cache has one."""
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton/cache"))
    compilers = [name for name in (os.environ.get("CC"), "gcc", "clang") if name and shutil.which(name)]
    if importlib.util.find_spec("triton") is None:
        yield failed("Kernels", "there is no Triton", "Install it: torch with CUDA brings it.")
    elif compilers or any(cache.rglob("cuda_utils*.so")):
        yield well(
            "Kernels", f"Triton {version('triton')}" + (f", {compilers[0]}" if compilers else ", compiled before")
        )
    else:
        advice = "Install gcc and Python's headers, or compile ahead as the image does (deploy/compile_launcher.py)."
        yield failed("Kernels", "Triton finds no C compiler, and nothing compiled before", advice)


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
