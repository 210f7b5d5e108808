"""What every test needs."""

import os

import pytest
import structlog
import torch

from service import metrics

# Imported first of all: prometheus_client decides when it is imported whether several processes are counted.
assert metrics.requests

# Triton reads it when it is imported: kernels are interpreted then, which needs no GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Beside other work on the same cores, threads that wait for each other make small operations many times slower.
torch.set_num_threads(1)
# structlog's own tracebacks, with every frame's variables, take a second each
structlog.configure([structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
