"""The machine that something is measured on."""

import os
import platform
import re
from pathlib import Path

CPU = Path("/proc/cpuinfo")


def machine() -> dict:
    """cpu (its name), cores, gpu (its name, null for none), and "instructions": the widest that torch uses of the
    processor, and whether there are some for bf16."""
    import torch  # here, because reading records needs no torch

    from dlip.linear import onednn_has_bf16

    named = re.search(r"model name\s*:\s*(.+)", CPU.read_text() if CPU.exists() else "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = named[1].strip() if named else platform.processor()
    instructions = torch.backends.cpu.get_cpu_capability() + " bf16" * onednn_has_bf16()
    return {"cpu": cpu, "instructions": instructions, "cores": os.cpu_count(), "gpu": gpu}
