"""Costs of an invented device, for the tests that plan."""

from typing import Any

from service.bench.tables import CostTable

RUNS = {1: 0.010, 2: 0.012, 4: 0.016, 8: 0.024}


def table(**changes: Any) -> CostTable:
    """What an invented GPU costs; nothing around it costs anything, unless it is told to."""
    invented = {
        "model": "invented",
        "precision": "float32",
        "device": "cuda",
        "machine": "invented",
        "lanes": 1,
        "ahead": 0,
        "padded": True,
        "seconds_by_batch_size": RUNS,
        "worker_cpu_seconds_per_picture": 0.0,
        "engine_cpu_seconds_per_picture": 0.0,
        "pictures": "none",
        "measured_on": "never",
        "command": "none",
    }
    return CostTable.model_validate(invented | changes)
