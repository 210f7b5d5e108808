import subprocess
import sys

# in a process of its own: what is set there cannot be taken back
COUNT_FAULTS = """
import resource, sys
import torch
from models.allocator import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1:]:
    keep_freed_memory()
source = torch.ones(10_000_000)
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    source + source
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_that_was_freed_is_used_again_without_asking_the_system() -> None:
    kept, given_back = page_faults("keep"), page_faults()
    assert 4 * kept < given_back
