"""Compiles the part of Triton that launches kernels into its cache: else it would at its first kernel, and would want
a C compiler where the service runs.

It is linked against the driver's library, which no image has. One of the same name with the same functions, all empty,
stands for it here; where the service runs, the driver's own takes its place. Without Triton there is nothing to do.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "libcuda.so.1"


def compile_launcher() -> None:
    """Compile it; raise SystemExit if that cannot be done."""
    from triton.backends.nvidia import driver

    source = (Path(driver.__file__).parent / "driver.c").read_text()
    with tempfile.TemporaryDirectory() as folder:
        _link_empty(set(re.findall(r"\bcu[A-Z]\w+", source)), Path(folder))
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        try:
            driver.CudaUtils()
        except ImportError as error:  # it is compiled, and cannot be loaded without a driver
            print(error)
    if not list(Path(os.environ["TRITON_CACHE_DIR"]).rglob("cuda_utils*.so")):
        raise SystemExit("Triton's launcher was not compiled.")


def _link_empty(functions: set[str], folder: Path) -> None:
    """A library of functions that do nothing."""
    source = folder / "empty.c"
    source.write_text("".join(f"void {function}(void) {{}}\n" for function in sorted(functions)))
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{NAME}", source, "-o", folder / NAME], check=True)


if __name__ == "__main__":
    if importlib.util.find_spec("triton") is None:
        sys.exit(0)
    compile_launcher()
