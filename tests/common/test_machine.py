"""What dlip asks of the machine."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from dlip.common import machine

if {kept}:
    machine.keep_freed_memory()
torch.set_num_threads(1)
torch.ones(1 << 24)  # 64 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc returns memory in this way")
def test_kept_memory_is_not_mapped_anew():
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(kept=kept)], capture_output=True, check=True).stdout)
        for kept in (False, True)
    ]
    assert faults[1] < 1000 and faults[0] > 2 * faults[1]
