"""Fills the disk at random moments: a command must stop with one sentence, and resume when there is room.

Each disk is a tmpfs of random size, mounted in a namespace of its own with `unshare`, which needs root. A checkpoint
that a full disk damaged shows as an unexpected file, as resuming would set it aside.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from drills.killed import SCENARIOS, differences, finish, grid_outputs, start

SIZES = 0.2, 1.5
"""Smallest and largest disk, as a share of what the command writes."""


def run(times: int = 20, seed: int = 0) -> tuple[dict, dict, list[str]]:
    """Return settings, how often the disk was full, and faults. Raises UserError if no disk can be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--map-root-user", "--mount"]
        command += [sys.executable, "-m", "drills.full", folder, str(times), str(seed)]
        try:
            process = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError("the drill full needs unshare of util-linux; run the other drills by name") from None
        if process.returncode:
            raise UserError(f"the drill full cannot mount its disk ({process.stderr.strip()[-300:]}); run it as root")
        counts, faults = json.loads(process.stdout)
    return {"times": times, "seed": seed}, counts, faults


def run_in_namespace(root: Path, times: int, seed: int) -> tuple[dict, list[str]]:
    rng, counts, faults = random.Random(seed), {}, []
    write_folder(root / "data", {"train": Scenes("train-small", size=64), "test": Scenes("test", size=12)})
    for name, scenario in SCENARIOS.items():
        disk, counts[name] = root / name, Counter()
        if name == "grid":  # a full disk makes runs of the grid fail
            scenario = replace(scenario, outputs=partial(grid_outputs, with_failed=False))
        faults += finish(scenario, root / "undisturbed")
        expected = scenario.outputs(root / "undisturbed")
        written = sum(path.stat().st_size for path in (root / "undisturbed").rglob("*") if path.is_file()) / 1e6
        for i in range(times):
            size = written * rng.uniform(*SIZES)  # MB
            disk.mkdir(exist_ok=True)
            mount(disk, size)
            process = start(scenario, disk)
            stderr = process.communicate()[1].strip()
            last = stderr.rpartition("\n")[2]
            full = process.returncode == 2 and last.startswith("dlip: ") and "No space left" in stderr
            counts[name]["full" if full else "enough"] += 1
            wrong = []
            if full:
                mount(disk, 500, "remount")
                wrong += finish(scenario, disk)
            elif process.returncode != 0:
                wrong.append(f"exit {process.returncode}: {stderr[-300:]}")
            wrong += differences(scenario, disk, expected)
            faults += [f"{name}, disk {i} of {size:.1f} MB: {fault}" for fault in wrong]
            subprocess.run(["umount", disk], check=True)
        shutil.rmtree(root / "undisturbed")
    return counts, faults


def mount(disk: Path, mb: float, *options: str) -> None:
    options = ",".join((f"size={int(mb * 1e6)}", *options))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)


if __name__ == "__main__":
    print(json.dumps(run_in_namespace(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
