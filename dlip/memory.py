"""How much memory a task takes, measured: on a GPU by its allocator, on a CPU by the growth of a process."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dlip.config import ModelConfig, scenes_size
from dlip.latency import Workload
from dlip.model import Med

if TYPE_CHECKING:
    from dlip.vlm import VLM

PROCESS = Path("/proc/self")


def memory(model: "Med | VLM", task: str = "captioning", **size) -> dict:
    """weights_mb, peak_mb (the task's peak on top of the weights; MB of 1e6 bytes) and the settings.

    On a CPU, peak_mb is how far the resident set of a fresh process grows that runs a model of the same
    sizes, once torch has set itself up; None where the system cannot tell (all but Linux). `size` and
    UserError as in `Workload`.
    """
    work = Workload(model, task, **size)
    kind = work.pixels.device.type
    peak = _allocator_peak(work) if kind == "cuda" else None
    if kind == "cpu" and (PROCESS / "clear_refs").exists():
        peak = _fresh_process(work.med, task=task, **size)
    weights = sum(p.numel() * p.element_size() for p in work.med.parameters())
    return {**work.settings, "weights_mb": weights / 1e6, "peak_mb": None if peak is None else peak / 1e6}


def _allocator_peak(work: Workload) -> int:
    device = work.pixels.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def _fresh_process(med: Med, **size) -> int:
    job = {
        "config": med.config.to_dict(),
        "dtype": str(med.temp.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "size": size,
    }
    code = "import json, sys, dlip.memory as m; print(m.process_growth(**json.load(sys.stdin)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def process_growth(config: dict, dtype: str, threads: int, size: dict) -> int:
    """Bytes by which this process grows at its peak while a new model of that configuration does the task."""
    torch.set_num_threads(threads)
    small = scenes_size(32, 1, 1, max_positions=config["max_positions"])
    Workload(Med(small).to(getattr(torch, dtype)), **{**size, "batch": 1})()  # sets up torch's threads and kernels
    work = Workload(Med(ModelConfig.from_dict(config)).to(getattr(torch, dtype)), **size)
    (PROCESS / "clear_refs").write_text("5")  # the peak so far is forgotten: man proc_pid_clear_refs
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that this process ever held: of a GPU in tensors, of a CPU in all; None where nobody can tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") if PROCESS.exists() else None


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())[1])
