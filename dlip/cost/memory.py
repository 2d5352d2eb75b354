"""How much memory a task takes, measured: what torch's allocator hands out at its peak."""

import os
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.autograd.profiler import profile
from torch.autograd.profiler_util import MEMORY_EVENT_NAME

from dlip.cost.latency import Workload
from dlip.models.med import Med

if TYPE_CHECKING:
    from dlip.vlm import VLM

PROCESSES = Path("/proc")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes when it starts and stops
with profile():  # which is set up the first time, and complains where that is not in the main thread
    pass


def memory(model: "Med | VLM", task: str = "captioning", **size) -> dict:
    """weights_mb, peak_mb (the most that the task's tensors take at a time; MB of 1e6 bytes) and the settings.

    peak_mb is None on devices other than CPU and CUDA. `size` and UserError as in `Workload`.
    """
    work = Workload(model, task, **size)
    measured = {"cuda": _peak_on_cuda, "cpu": peak_on_cpu}.get(work.pixels.device.type)
    peak = measured(work) / 1e6 if measured else None
    weights = sum(p.numel() * p.element_size() for p in work.med.parameters())
    return {**work.settings, "weights_mb": weights / 1e6, "peak_mb": peak}


def _peak_on_cuda(work: Workload) -> int:
    device = work.pixels.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def peak_on_cpu(work: Callable[[], object]) -> int:
    """The most bytes that tensors which `work` makes take at a time."""
    with profile(profile_memory=True) as seen:
        work()
    events = [event for event in seen.kineto_results.events() if event.name() == MEMORY_EVENT_NAME]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that this process ever held: of a GPU in tensors, of a CPU in all; None where nobody can tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") if (PROCESSES / "self").exists() else None


def resident_mb(process: int | str = "self") -> float:
    """What a process holds now, in MB of 1e6 bytes, where there is Linux's /proc."""
    return _status("VmRSS", process) / 1e6


def _status(field: str, process: int | str = "self") -> int:
    status = (PROCESSES / str(process) / "status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])
