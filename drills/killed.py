"""Kills commands at random moments: restarted, each must end as if undisturbed, and nothing may be done twice.

Each command runs once undisturbed, then repeatedly in new folders, where it is killed up to `MAX_KILLS` times at
moments drawn uniformly from the undisturbed run's time.
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

TRAIN_IMAGES = 600
"""More than the 512 after which the teacher cache is flushed, so that a kill can hit a part-filled cache."""
DISTILL = (
    "distill --teacher scenes/teacher --size scenes-student --weights vlp,hr,at --steps 30 --warmup 4 --log-every 1 "
    "--batch-size 8 --latency-repeats 0 --data ../data --out run --results records.jsonl"
)
MAX_KILLS = 5
"""Kills in one folder."""
TIMED_FIELDS = ("id", "created", "wall_s", "efficiency")
"""Fields of a record that differ between equal runs."""


@dataclass(frozen=True)
class Scenario:
    command: str
    outputs: Callable[[Path], dict]
    """What must be the same in the end, by name."""
    progress: Callable[[Path], float] = lambda folder: 0.0
    """What has been saved so far; it may never decrease."""


def run(times: int = 50, seed: int = 0, names: tuple[str, ...] = ()) -> tuple[dict, dict, list[str]]:
    """Return settings, numbers of kills and finished runs, and faults. times: kills of each of the `SCENARIOS`."""
    rng, counts, faults = random.Random(seed), {}, []
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        splits = {"train": Scenes("train-small", size=TRAIN_IMAGES), "test": Scenes("test", size=12)}
        write_folder(root / "data", splits)
        for name in names or SCENARIOS:
            scenario, kills, runs = SCENARIOS[name], 0, 0
            began = time.perf_counter()
            faults += [f"{name}, undisturbed: {fault}" for fault in finish(scenario, root / name)]
            seconds, expected = time.perf_counter() - began, scenario.outputs(root / name)
            while kills < times:
                folder, began = root / f"{name}-{runs}", time.perf_counter()
                new, wrong = run_with_kills(scenario, folder, rng, seconds, min(MAX_KILLS, times - kills))
                if not new:  # the undisturbed run may have been slow because the machine was busy
                    seconds = min(seconds, time.perf_counter() - began)
                wrong += differences(scenario, folder, expected)
                faults += [f"{name}, folder {runs}: {fault}" for fault in wrong]
                kills, runs = kills + new, runs + 1
                shutil.rmtree(folder)
            counts[name] = {"kills": kills, "ends": runs, "undisturbed_s": round(seconds, 1)}
    return {"times": times, "seed": seed}, counts, faults


def run_with_kills(
    scenario: Scenario, folder: Path, rng: random.Random, seconds: float, max_kills: int
) -> tuple[int, list[str]]:
    """Run a command to its end, killed up to `max_kills` times; return the number of kills, and faults."""
    faults, saved = [], 0.0
    for kills in range(max_kills):
        process = start(scenario, folder)
        try:
            process.wait(rng.uniform(0, seconds))
            return kills, faults + wait(process)
        except subprocess.TimeoutExpired:
            kill = rng.choice((os.kill, os.killpg))  # the process alone, as by the out-of-memory killer, or its group
            kill(process.pid, signal.SIGKILL)
            process.communicate()
            wait_for_group(process.pid)
        now = scenario.progress(folder)
        if now < saved:
            faults.append(f"progress fell from {saved:g} to {now:g} after kill {kills + 1}")
        saved = now
    return max_kills, faults + finish(scenario, folder)


def start(scenario: Scenario, folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "dlip", *scenario.command.split()]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(scenario: Scenario, folder: Path) -> list[str]:
    return wait(start(scenario, folder))


def wait(process: subprocess.Popen) -> list[str]:
    """Wait for a process; return its last words if it failed."""
    stderr = process.communicate()[1].strip()
    failed = process.returncode != 0 or "Traceback" in stderr
    return [f"exit {process.returncode}: {stderr[-300:]}"] if failed else []


def wait_for_group(group: int) -> None:
    """Wait for the children of a process that was killed alone; they exit by themselves."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise RuntimeError(f"processes of group {group} outlive the one that was killed")


def differences(scenario: Scenario, folder: Path, expected: dict) -> list[str]:
    outputs = scenario.outputs(folder)
    wrong = [f"{name} differs" for name in expected if name in outputs and outputs[name] != expected[name]]
    wrong += [f"{name} is missing" for name in expected if name not in outputs]
    return wrong + [f"{name} is unexpected" for name in outputs if name not in expected]


# --- outputs and progress ---------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows(path: Path, without: tuple[str, ...]) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def training_outputs(folder: Path) -> dict:
    """A run's files, its log without times, and the records: a run recorded twice adds one."""
    outputs = {name: sha for name, sha in files(folder / "run").items() if name not in ("log.jsonl", "record.json")}
    log = rows(folder / "run" / "log.jsonl", ("seconds", "images_per_s"))
    return outputs | {"log": log, "records": rows(folder / "records.jsonl", TIMED_FIELDS)}


def last_checkpoint(folder: Path) -> float:
    return max((int(path.stem.split("-")[1]) for path in folder.glob("run/checkpoint-*.safetensors")), default=0)


def cache_outputs(folder: Path) -> dict:
    return training_outputs(folder) | {f"cache/{name}": sha for name, sha in files(folder / "cache").items()}


def cached_blocks(folder: Path) -> float:
    return sum(len(json.loads(path.read_text())["crc32"]) for path in folder.glob("cache/*/cache.json"))


def grid_outputs(folder: Path, with_failed: bool = True) -> dict:
    """Records by name, with or without those of failed runs, and hashes of the weights."""
    records = rows(folder / "records.jsonl", TIMED_FIELDS)
    records = sorted((r for r in records if with_failed or "failed" not in r), key=lambda record: record["name"])
    weights = {name: sha for name, sha in files(folder / "runs").items() if name.endswith(".safetensors")}
    return {f"{record['name']} {i}": record for i, record in enumerate(records)} | weights


def record_count(folder: Path) -> float:
    path = folder / "records.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


SCENARIOS = {
    "training": Scenario(f"{DISTILL} --save-every 3", training_outputs, last_checkpoint),
    "cache": Scenario(f"{DISTILL} --steps 2 --cache cache", cache_outputs, cached_blocks),
    "grid": Scenario(
        "ablate attention --only both --only self-attention --only cross-attention --quick --workers 2 --out runs "
        "--results records.jsonl",
        grid_outputs,
        record_count,
    ),
    "export": Scenario("export scenes/student --to transformers --out export", lambda folder: files(folder / "export")),
}
