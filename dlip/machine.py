"""The machine that something is measured on."""

import os
import platform
import re
from pathlib import Path

CPU = Path("/proc/cpuinfo")


def machine() -> dict:
    """cpu (its name), cores, and gpu (its name, null for none)."""
    import torch  # here, because reading records needs no torch

    named = re.search(r"model name\s*:\s*(.+)", CPU.read_text() if CPU.exists() else "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": named[1].strip() if named else platform.processor(), "cores": os.cpu_count(), "gpu": gpu}
