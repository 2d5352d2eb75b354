"""The machine that a result was measured on, and the versions of the code that measured it."""

import ctypes
import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import dlip

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""
PACKAGES = ("accelerate", "numpy", "pillow", "tokenizers")
"""Packages besides torch that random draws, images, tokens or last digits depend on."""


def machine_info() -> dict:
    """CPU name, number of cores, GPU name (None without one), and `instructions`: the widest vector instructions that
    torch uses, followed by "bf16" where oneDNN has bf16 kernels for this CPU."""
    import torch  # here, because reading records needs no torch

    from dlip.common.torch_private import onednn_has_bf16

    model = re.search(r"model name\s*:\s*(.+)", CPUINFO.read_text() if CPUINFO.exists() else "")
    return {
        "cpu": model[1].strip() if model else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability() + " bf16" * onednn_has_bf16(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def device() -> "torch.device":
    """The accelerator, or the CPU."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensors instead of returning it to the kernel, which would map and zero it anew.

    Of this process, from now on, where the C library is glibc; elsewhere nothing happens. On a GPU torch does the same.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def synchronize(device: "torch.device") -> None:
    """Wait until a device has done its work: a GPU is given work that it does later."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def package_versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


@cache
def code_version() -> dict:
    """Version of this package and, in a git checkout, its commit and whether files were modified (else None).

    The result is cached: it describes the code as it was at the first call.
    """
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
