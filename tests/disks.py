"""Small disks for the tests to fill: a file system in memory that only the processes of one test see."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import PATIENCE_S, ROOT, serving

HUB_FILE = "/timm/volo_d1_224.sail_in1k/resolve/main/model.safetensors"
"""Where a hub has the weights of volo_d1_224."""


@dataclass(frozen=True)
class Disk:
    """A disk at a path that holds for commands begun with ``within``; ``seen`` is the same path for everybody else."""

    path: Path
    seen: Path
    within: tuple[str, ...]

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.seen).free

    @property
    def files(self) -> set[str]:
        """The names of all files on it."""
        return {str(file.relative_to(self.seen)) for file in self.seen.rglob("*") if file.is_file()}

    def protect(self, protected: bool = True) -> None:
        """Let nobody write to it from now on, or everybody again."""
        how = "remount,ro" if protected else "remount,rw"
        subprocess.run([*self.within, "mount", "-o", how, str(self.path)], check=True)

    @contextmanager
    def full(self, but_bytes: int = 0) -> Iterator[None]:
        """Without room, or with no more than that."""
        filling = self.seen / "filling"
        with filling.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, self.free_bytes - but_bytes)
        try:
            yield
        finally:
            filling.unlink()


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Disk]:
    """A disk of that size, as mount has it; it needs no rights but that to make namespaces."""
    path.mkdir(parents=True, exist_ok=True)
    mount = 'mount -t tmpfs -o "size=$1,mode=0755" none "$0" && echo there && exec cat'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(path), size]
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("unshare and nsenter of util-linux are needed to make a small disk")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        if not holder.stdout.readline():
            pytest.skip("no user namespace with a mount of its own may be made here")
        enter = ("nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials")
        here = ("sh", "-c", 'cd "$0" && exec "$@"', str(ROOT))  # to enter leads to the root
        yield Disk(path, Path(f"/proc/{holder.pid}/root{path}"), (*enter, *here))
        holder.stdin.close()


def downloading(disk: Disk, hub: str) -> dict[str, str]:
    """The variables of a service that serves volo_d1_224, with that disk for its cache, and nothing but that hub."""
    network = {"HF_ENDPOINT": hub, "HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}
    return {**network, "HF_HOME": str(disk.path), "HF_HUB_DISABLE_TELEMETRY": "1", "VOLO_MODEL": "volo_d1_224"}


def why_not_started(folder: Path, disk: Disk, hub: str, **settings: str) -> str:
    """What it says in the log when it cannot be served."""
    with serving(folder, within=disk.within, **downloading(disk, hub), **settings) as service:
        assert service.process.wait(PATIENCE_S) == 78
        (told,) = service.said("cannot start")  # all lines are JSON, those of other libraries too
        return str(told["reason"])


def weights_on(disk: Disk) -> list[str]:
    """What may be weights, or half of them."""
    return [name for name in disk.files if (disk.seen / name).stat().st_size > 1000]
