"""A disk that is full: the work stops with a sentence, keeps what it had, and goes on when there is room.

The disk is a file system in memory, of a size drawn at random, mounted where only this drill sees it: `unshare` has to
be allowed to do so, which root is.
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

from dlip.checkpoints.tensors import read_tensors
from dlip.common.errors import UserError
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from drills.killed import WORKS, differences, finish, grid, start

SHARE = 0.2, 1.5
"""Least and most size of a disk, as a share of what the work takes in the end."""


def run(times: int = 20, seed: int = 0) -> tuple[dict, dict, list[str]]:
    """Settings, how often the disk was full and was not, and what was wrong. Raises UserError without `unshare`."""
    with tempfile.TemporaryDirectory() as place:
        alone = ("unshare", "--map-root-user", "--mount")
        words = (sys.executable, "-m", "drills.full", place, str(times), str(seed))
        try:
            done = subprocess.run([*alone, *words], capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError("the drill full needs unshare, of util-linux; do the others by their names") from None
        if done.returncode:
            raise UserError(f"the drill full cannot mount its disk ({done.stderr.strip()[-300:]}); do it as root")
        counts, faults = json.loads(done.stdout)
    return {"times": times, "seed": seed}, counts, faults


def inside(place: Path, times: int, seed: int) -> tuple[dict, list[str]]:
    """The drill, where mounts are its own."""
    rng, counts, faults = random.Random(seed), {}, []
    write_folder(place / "data", {"train": Scenes("train-small", size=64), "test": Scenes("test", size=12)})
    for name, work in WORKS.items():
        disk, counts[name] = place / name, Counter()
        if name == "grid":
            work = replace(work, kept=partial(grid, failed=False))
        faults += finish(work, place / "undisturbed")
        wanted = work.kept(place / "undisturbed")
        taken = sum(path.stat().st_size for path in (place / "undisturbed").rglob("*") if path.is_file()) / 1e6
        for i in range(times):
            size = taken * rng.uniform(*SHARE)  # MB
            disk.mkdir(exist_ok=True)
            mount(disk, size)
            process = start(work, disk)
            said = process.communicate()[1].strip()
            full = process.returncode == 2 and said.splitlines()[-1].startswith("dlip: ") and "No space left" in said
            counts[name]["full" if full else "enough"] += 1
            if not full and process.returncode != 0:
                faults.append(f"{name}, disk {i} of {size:.1f} MB: exit {process.returncode}: {said[-300:]}")
            faults += [f"{name}, disk {i}: {fault}" for fault in unreadable(disk)]
            if full:
                mount(disk, 500, "remount")
                faults += [f"{name}, disk {i}, with room: {fault}" for fault in finish(work, disk)]
            faults += [f"{name}, disk {i}: {fault}" for fault in differences(work, disk, wanted)]
            subprocess.run(["umount", disk], check=True)
        shutil.rmtree(place / "undisturbed")
    return counts, faults


def mount(disk: Path, mb: float, *options: str) -> None:
    options = ",".join((f"size={int(mb * 1e6)}", *options))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)


def unreadable(disk: Path) -> list[str]:
    """Checkpoints that are there and cannot be read."""
    wrong = []
    for path in disk.rglob("checkpoint-*.safetensors"):
        try:
            read_tensors(path)
        except UserError as fault:
            wrong.append(str(fault))
    return wrong


if __name__ == "__main__":
    print(json.dumps(inside(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
