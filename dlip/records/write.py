"""Records of finished runs, appended to a file of JSON lines."""

import fcntl
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import numpy as np

from dlip.common.errors import UserError
from dlip.common.files import fsync_dir
from dlip.common.machine import code_version, machine_info, package_versions
from dlip.records.outcomes import outcomes as outcomes  # read here, as the rest of a record
from dlip.records.outcomes import packed
from dlip.records.schema import ROLES, SCHEMA

POINTS = 100  # of a loss curve


SAMPLES = 12


def new_record(
    name: str,
    role: str,
    *,
    command: str,
    config: dict,
    seed: int,
    train_images: int,
    metrics: dict,
    losses: dict[str, list[float]],
    wall_s: float,
    device: str = "cpu",
    samples: Iterable[dict] = (),
    items: dict[str, list[dict]] | None = None,
) -> dict:
    """The record of a finished run.

    metrics: what `dlip.evaluate` yields, with "efficiency" beside it; data, split and notes are taken from it too.
    losses: "step" and one list a term, thinned here. items: as `dlip.evaluate` returns them, for "outcomes".
    Raises ValueError where the role is none of `ROLES` or the lists of losses differ in length.
    """
    import torch  # here, because reading records needs no torch

    from dlip.common.distributed import world_size

    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    config = _plain(config)
    return {
        "schema": SCHEMA,
        "id": uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": name,
        "role": role,
        "command": command,
        "config": config,
        "config_hash": config_hash(config),
        "seed": seed,
        "data": metrics["data"],
        "split": metrics["split"],
        "train_images": train_images,
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "releases": package_versions(),
        "device": device,
        "machine": machine_info(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "wall_s": round(wall_s, 1),
        "losses": _plain(thin(losses)),
        "metrics": _plain({task: metrics.get(task) for task in ("retrieval", "captioning", "vqa", "attention")}),
        "efficiency": _plain(metrics["efficiency"]),
        "samples": _plain(list(samples)[:SAMPLES]),
        "notes": _plain(metrics.get("notes") or {}),
        "outcomes": packed(items or {}),
    }


def failure(name: str, role: str, seed: int, ablation: dict, reason: str) -> dict:
    """The line of a grid's run that failed."""
    about = {"schema": SCHEMA, "failed": reason, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    return about | {"name": name, "role": role, "seed": seed, "ablation": ablation}


def config_hash(config: dict) -> str:
    """SHA-256 of the configuration in canonical JSON, without the seeds at its top and of its "train".

    Runs that differ in their seed alone share it, in whatever order their keys stand; other data have another.
    """
    parts = {key: value for key, value in _plain(config).items() if key != "seed"}
    if "train" in parts:
        parts["train"] = {key: value for key, value in parts["train"].items() if key != "seed"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def thin(losses: dict[str, list[float]], points: int = POINTS) -> dict[str, list[float]]:
    """The same curves at no more than `points` evenly spaced steps, the first and the last among them."""
    lengths = {len(values) for values in losses.values()}
    if len(lengths) > 1:
        raise ValueError(f"lists of losses have {sorted(lengths)} points; all must have as many as there are steps")
    n = max(lengths, default=0)
    kept = np.linspace(0, n - 1, min(n, points)).round().astype(int)
    return {term: [values[i] for i in kept] for term, values in losses.items()}


def append(record: dict, path: str | Path) -> None:
    """Adds one line to a file of records, on disk when this returns.

    Processes that append to one file wait for each other, and nothing that is in it is overwritten: after a line that
    was left half written, the record starts a line of its own. Raises UserError where it cannot be written.
    """
    path = Path(path)
    line = (json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(file, line) < len(line):
                os.ftruncate(file, size)
                raise OSError("the disk is full")
            os.fsync(file)
            fsync_dir(path.parent)
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(
            f"the record cannot be added to {path}: {error.strerror or error}; choose another file"
        ) from error


def _plain(value):
    """What JSON can hold: tuples as lists, numbers of numpy and torch as Python's, no NaN or infinity (null)."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
