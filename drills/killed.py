"""SIGKILL at random moments: what is begun again ends as if nothing had happened, and nothing is done twice.

Each piece of work is a command. It is run once undisturbed, then again and again in new folders, where it is killed at
moments drawn evenly from that run's time, often several times before it comes to its end.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes

PICTURES = 600
"""That the cache is filled with: it is safe on the disk after every 512."""
DISTILL = (
    "distill --teacher scenes/teacher --size scenes-student --weights vlp,hr,at --steps 30 --warmup 4 --log-every 1 "
    "--batch-size 8 --latency-repeats 0 --data ../data --out run --results records.jsonl"
)
KILLS = 5
"""Most in one folder."""
NEVER_EQUAL = ("id", "created", "wall_s", "efficiency")
"""Fields of a record that tell of time, or hold times."""


@dataclass(frozen=True)
class Work:
    command: str
    kept: Callable[[Path], dict]
    """What has to be the same in the end, by name."""
    progress: Callable[[Path], float] = lambda folder: 0.0
    """What is kept so far, which may never become less."""


def run(times: int = 50, seed: int = 0, works: tuple[str, ...] = ()) -> tuple[dict, dict, list[str]]:
    """Settings, how many kills and ends there were, and what was wrong. works: some of `WORKS` (default: all)."""
    rng, counts, faults = random.Random(seed), {}, []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        write_folder(place / "data", {"train": Scenes("train-small", size=PICTURES), "test": Scenes("test", size=12)})
        for name in works or WORKS:
            work, killed, ended = WORKS[name], 0, 0
            began = time.perf_counter()
            faults += [f"{name}, undisturbed: {said}" for said in finish(work, place / name)]
            seconds, wanted = time.perf_counter() - began, work.kept(place / name)
            while killed < times:
                folder, began = place / f"{name}-{ended}", time.perf_counter()
                hit, wrong = disturbed(work, folder, rng, seconds, min(KILLS, times - killed))
                if not hit:  # the machine may have had more to do when it was measured
                    seconds = min(seconds, time.perf_counter() - began)
                faults += [f"{name}, folder {ended}: {fault}" for fault in wrong + differences(work, folder, wanted)]
                killed, ended = killed + hit, ended + 1
                shutil.rmtree(folder)
            counts[name] = {"kills": killed, "ends": ended, "undisturbed_s": round(seconds, 1)}
    return {"times": times, "seed": seed}, counts, faults


def disturbed(work: Work, folder: Path, rng: random.Random, seconds: float, most: int) -> tuple[int, list[str]]:
    """Does the work, killed up to `most` times; returns how often it was, and what was wrong."""
    faults, kept = [], 0.0
    for hit in range(most):
        process = start(work, folder)
        try:
            process.wait(rng.uniform(0, seconds))
            return hit, faults + complaints(process)
        except subprocess.TimeoutExpired:
            whom = rng.choice((os.kill, os.killpg))  # the process alone, as a machine out of memory does, or all of it
            whom(process.pid, signal.SIGKILL)
            process.communicate()
            wait_for_children(process.pid)
        now = work.progress(folder)
        faults += [f"{kept:g} was kept before and {now:g} after kill {hit + 1}"] * (now < kept)
        kept = now
    return most, faults + finish(work, folder)


def start(work: Work, folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "dlip.cli", *work.command.split()]
    return subprocess.Popen(
        words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(work: Work, folder: Path) -> list[str]:
    return complaints(start(work, folder))


def complaints(process: subprocess.Popen) -> list[str]:
    """Waits for a process; what it said where it did not end well."""
    said = process.communicate()[1].strip()
    wrong = process.returncode != 0 or "Traceback" in said
    return [f"exit {process.returncode}: {said[-300:]}"] if wrong else []


def wait_for_children(group: int) -> None:
    """Those of a process that was killed alone end by themselves."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise RuntimeError(f"processes of group {group} outlive the one that was killed")


def differences(work: Work, folder: Path, wanted: dict) -> list[str]:
    found = work.kept(folder)
    wrong = [f"{name} differs" for name in wanted if name in found and found[name] != wanted[name]]
    wrong += [f"{name} is missing" for name in wanted if name not in found]
    return wrong + [f"{name} is left" for name in found if name not in wanted]


# --- the works --------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows(path: Path, without: tuple[str, ...]) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def trained(folder: Path) -> dict:
    """Of a run: its files, its log without times, its records: a repeated one would be two."""
    kept = {name: sha for name, sha in files(folder / "run").items() if name not in ("log.jsonl", "record.json")}
    log = rows(folder / "run" / "log.jsonl", ("seconds", "images_per_s"))
    return kept | {"log": log, "records": rows(folder / "records.jsonl", NEVER_EQUAL)}


def steps(folder: Path) -> float:
    return max((int(path.stem.split("-")[1]) for path in folder.glob("run/checkpoint-*.safetensors")), default=0)


def cached(folder: Path) -> dict:
    return trained(folder) | {f"cache/{name}": sha for name, sha in files(folder / "cache").items()}


def filled(folder: Path) -> float:
    return sum(json.loads(path.read_text())["filled"] for path in folder.glob("cache/*/cache.json"))


def grid(folder: Path, failed: bool = True) -> dict:
    """Each run's record by name and its weights; a run that were recorded twice would be two. failed: whether the
    lines of runs that failed are records too."""
    records = [row for row in rows(folder / "records.jsonl", NEVER_EQUAL) if failed or "failed" not in row]
    named = {f"{record['name']} {i}": record for i, record in enumerate(sorted(records, key=lambda r: r["name"]))}
    weights = {name: sha for name, sha in files(folder / "runs").items() if name.endswith(".safetensors")}
    return named | weights


def recorded(folder: Path) -> float:
    path = folder / "records.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


WORKS = {
    "training": Work(f"{DISTILL} --save-every 3", trained, steps),
    "cache": Work(f"{DISTILL} --steps 2 --cache cache", cached, filled),
    "grid": Work(
        "ablate attention --only both --only self-attention --only cross-attention --quick --workers 2 --out runs "
        "--results records.jsonl",
        grid,
        recorded,
    ),
    "export": Work("export scenes/student --to transformers --out export", lambda folder: files(folder / "export")),
}
