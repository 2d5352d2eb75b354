"""The machine that something is measured on, and the code that does it."""

import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import dlip

CPU = Path("/proc/cpuinfo")
RELEASES = ("accelerate", "numpy", "pillow", "tokenizers")
"""Of what draws, pictures, words and last digits depend on, beside torch."""


def machine() -> dict:
    """cpu (its name), cores, gpu (its name, null for none), and "instructions": the widest that torch uses of the
    processor, and whether there are some for bf16."""
    import torch  # here, because reading records needs no torch

    named = re.search(r"model name\s*:\s*(.+)", CPU.read_text() if CPU.exists() else "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = named[1].strip() if named else platform.processor()
    instructions = torch.backends.cpu.get_cpu_capability() + " bf16" * onednn_has_bf16()
    return {"cpu": cpu, "instructions": instructions, "cores": os.cpu_count(), "gpu": gpu}


def releases() -> dict[str, str]:
    """Name -> release, of `RELEASES`."""
    return {name: version(name) for name in RELEASES}


@cache
def code() -> dict:
    """Which code this process runs, as it was when it was first asked for: "version", "commit", "modified"."""
    folder = Path(dlip.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    commit = modified = None
    try:
        if git("ls-files", "__init__.py"):  # else an environment inside another project's checkout
            commit, modified = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, no checkout, or no commit yet
    return {"version": dlip.__version__, "commit": commit, "modified": modified}


def onednn_has_bf16() -> bool:
    """Whether oneDNN's products in bf16 have instructions of this processor."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
