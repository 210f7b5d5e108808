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
    """A CUDA device; memory in bytes, or the ``error`` that it gives instead."""

    name: str
    free: int = 0
    total: int = 0
    error: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.error or f'{self.free / 1e9:.1f} of {self.total / 1e9:.1f} GB free'}"


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

    def __str__(self) -> str:
        built = f"built for CUDA {_dotted(self.built)}" if self.built else "without CUDA"
        driver = f"the driver goes up to {_dotted(self.driver)}" if self.driver else "there is no NVIDIA driver"
        return f"torch {self.torch}, {built}; {driver}"


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
            error = _first_line(raised)
    built = torch.version.cuda
    return Cuda(torch.__version__, _pair(built) if built else None, driver_version(), cards, error)


def _card(index: int) -> Card:
    import torch

    name = torch.cuda.get_device_name(index)
    try:
        return Card(name, *torch.cuda.mem_get_info(index))
    except RuntimeError as raised:  # somebody may have it alone, or it is broken, and another one may be in use
        return Card(name, error=_first_line(raised))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


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
        cards = f"; not used: {', '.join(map(str, cuda.cards))}" if cuda.cards else ""
        yield well("Device", f"the processor, as is set; {cuda}{cards}")
    elif cuda.cards:
        yield from _judge_cards(device, cuda)
    elif cuda.driver is None:
        if wanted:
            advice = "Install the driver; a container needs NVIDIA's container toolkit and --gpus all."
            without = "" if cuda.built else f", and torch {cuda.torch} is without CUDA"
            yield failed("Device", f"{device} is set, and there is no NVIDIA driver{without}", advice)
        else:
            yield well("Device", f"the processor; {cuda}")
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
    used = int(device.partition(":")[2] or 0)
    if used >= len(cuda.cards):
        yield failed("Device", f"{device} is set, and there are {len(cuda.cards)}", "Set one that is there.")
    for index, card in enumerate(cuda.cards):
        if index == used:
            yield _judge_card(card, f"cuda:{index} is used: {card}; {cuda}")
        else:
            yield well("Device", f"cuda:{index} is not used: {card}")
    if used < len(cuda.cards):
        yield from _kernels()


def _judge_card(card: Card, found: str) -> Finding:
    advice = "See who else uses the card: nvidia-smi."
    if card.error:
        return failed("Device", found, advice)
    return warning("Device", found, advice) if card.free < LEAST_FREE_BYTES else well("Device", found)


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
