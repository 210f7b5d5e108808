"""What the machine or the container lets the service have, and whether its settings fit into that."""

import errno
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service import cgroups, tls
from service.doctor.findings import Finding, failed, warning, well
from service.inference import LIGHT_BYTES
from service.settings import Settings, cores

WORKER_BYTES = 100_000_000
ENGINE_BYTES = 600_000_000
FEW_FILES, TOO_FEW_FILES = 1024, 128
LEAST_FREE_BYTES = 200_000_000


@dataclass(frozen=True)
class Machine:
    """Processors, bytes of memory, and open files at once that a process may have."""

    cores: int
    memory: int
    files: int


def look() -> Machine:
    """What there is."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(cores(), cgroups.total_memory(), files)


def machine(settings: Settings, image_sizes: list[int]) -> Iterator[Finding]:
    """Whether the machine is large enough for the settings."""
    return judge(settings, image_sizes, look())


def judge(settings: Settings, image_sizes: list[int], machine: Machine) -> Iterator[Finding]:
    """What to make of it, for models of these sizes."""
    found = f"{machine.cores}; HTTP workers: {settings.http_workers}"
    if settings.http_workers > machine.cores:
        yield warning(
            "Processors", found, f"More workers than processors only get in each other's way: set {machine.cores}."
        )
    else:
        yield well("Processors", found)
    needed = needed_bytes(settings, image_sizes)
    found = f"{machine.memory / 1e9:.1f} GB; {needed / 1e9:.1f} GB may be needed"
    if needed > machine.memory:
        advice = "Give it more, or fewer workers, a lower VOLO_DECODE_MEMORY or VOLO_QUEUE_LIMIT."
        yield warning("Memory", found, advice)
    else:
        yield well("Memory", found)
    if machine.files < TOO_FEW_FILES:
        yield failed("Open files", f"{machine.files} at once", f"Raise the limit: ulimit -n {FEW_FILES} or more.")
    elif machine.files < FEW_FILES:
        yield warning(
            "Open files", f"{machine.files} at once, one a connection", f"Raise the limit: ulimit -n {FEW_FILES}."
        )
    else:
        yield well("Open files", f"{machine.files:,} at once")


def needed_bytes(settings: Settings, image_sizes: list[int]) -> int:
    """What the processes, their slots, the bodies and the largest pictures in every decoder take together at worst."""
    slots = settings.queue_limit + 3 * settings.max_batch + settings.decode_threads
    slab = slots * sum(size * size * 3 + 20_000 for size in image_sizes)
    pictures = settings.body_memory + settings.decode_threads * LIGHT_BYTES + settings.decode_memory
    return settings.http_workers * (WORKER_BYTES + slab + pictures) + len(image_sizes) * ENGINE_BYTES


def shared_memory() -> Iterator[Finding]:
    """Pictures lie in unnamed memory files, which need no /dev/shm."""
    os.close(os.memfd_create("volo-doctor"))
    shm = Path("/dev/shm")
    size = f"; /dev/shm has {shutil.disk_usage(shm).total / 1e6:,.0f} MB, and is not used" if shm.is_dir() else ""
    yield well("Shared memory", f"memory files work{size}")


def disk() -> Iterator[Finding]:
    """Sockets, metrics and large uploads lie in the folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="volo-doctor-") as folder:
        socket_path = Path(folder) / "engine-0.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(socket_path))  # a long path is an error here as well
        free = shutil.disk_usage(folder).free
    found = f"{tempfile.gettempdir()}, {free / 1e9:.1f} GB free"
    if free < LEAST_FREE_BYTES:
        yield warning("Temporary files", found, "Make room, or set TMPDIR to where there is some.")
    else:
        yield well("Temporary files", found)


def port(settings: Settings) -> Iterator[Finding]:
    """Whether the service could listen where it should."""
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            advice = "Set another with VOLO_HOST and VOLO_PORT."
            if error.errno == errno.EADDRINUSE:
                advice += " `ss -ltnp` tells who has this one: perhaps a service of ours that runs already."
            yield failed("Port", f"{where}: {error.strerror}", advice)
        else:
            yield well("Port", f"{where} is free")


def certificate(settings: Settings) -> Iterator[Finding]:
    """Whether HTTPS could be served, if it is to be."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        tls.context(settings.tls_cert, settings.tls_key)
    except tls.UnusableCertificate as error:
        yield failed("Certificate", str(error), "Mend VOLO_TLS_CERT and VOLO_TLS_KEY, or do without both.")
    else:
        yield well("Certificate", str(settings.tls_cert))
