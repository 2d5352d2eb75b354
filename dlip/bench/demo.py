"""`dlip demo` as its users run it: a process of its own, into an empty folder."""

import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import torch

from dlip.bench import row
from dlip.common.errors import UserError


def run(rounds: int = 1) -> tuple[dict, list[dict]]:
    """Seconds from the command to the report. Raises UserError if it fails."""
    times = []
    for _ in range(rounds):
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "dlip", "demo", "--out", f"{folder}/demo", "--json", "-"]
            done = subprocess.run(command, capture_output=True, text=True)
            times.append(time.perf_counter() - start)
        if done.returncode:
            raise UserError(f"the demo failed: {done.stderr.strip()[-300:]}")
    return {"rounds": rounds, "threads": torch.get_num_threads()}, [row("dlip demo", times, times, "s")]
