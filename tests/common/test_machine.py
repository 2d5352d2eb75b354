"""What dlip asks of the machine."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from dlip.common import machine

torch.set_num_threads(1)
for kept in (False, True):
    if kept:
        machine.keep_freed_memory()
    torch.ones(1 << 24)  # 64 MiB, freed at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc returns memory in this way")
def test_kept_memory_is_not_mapped_anew():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < 1000 and returned > 2 * kept
