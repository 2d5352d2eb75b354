"""Measured memory of a task: the peak of what torch's allocator hands out on a GPU, of the process on a CPU."""

import os
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.autograd.profiler import profile
from torch.autograd.profiler_util import MEMORY_EVENT_NAME

from dlip.cost.latency import Workload
from dlip.vlm import VLM

PROCESSES = Path("/proc")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints when it starts and stops
with profile():  # its first use has to be in the main thread
    pass


def memory(vlm: VLM, task: str = "captioning", **size) -> dict:
    """weights_mb, peak_mb (peak of the task's tensors; MB of 1e6 bytes) and the settings.

    peak_mb is None on devices other than CPU and CUDA. size, Raises: as in `Workload`.
    """
    work = Workload(vlm.med, task, **size)
    measured = {"cuda": _peak_on_cuda, "cpu": peak_on_cpu}.get(work.pixels.device.type)
    weights = sum(p.nbytes for p in work.med.parameters())
    return {**work.settings, "weights_mb": weights / 1e6, "peak_mb": measured(work) / 1e6 if measured else None}


def _peak_on_cuda(work: Workload) -> int:
    device = work.pixels.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def peak_on_cpu(work: Callable[[], object]) -> int:
    """Peak of the bytes allocated by `work`."""
    with profile(profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.kineto_results.events() if event.name() == MEMORY_EVENT_NAME]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory of this process in bytes: on a GPU that of tensors, on a CPU all; None where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM", "self") if (PROCESSES / "self").exists() else None


def peak_mb(process: int | str = "self") -> float:
    """Peak resident memory of a process in MB of 1e6 bytes; needs Linux's /proc."""
    return _status("VmHWM", process) / 1e6


def _status(field: str, process: int | str) -> int:
    status = (PROCESSES / str(process) / "status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])
