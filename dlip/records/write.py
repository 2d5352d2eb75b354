"""Write records of finished runs to files of JSON lines."""

import fcntl
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
from dlip.records.outcomes import packed
from dlip.records.schema import ROLES, SCHEMA, config_hash

CURVE_POINTS = 100
"""Maximum number of points of a curve in a record."""
SAMPLES = 12
"""Maximum number of samples in a record."""


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
    evaluations: dict | None = None,
) -> dict:
    """The record of a finished run.

    metrics: the result of `dlip.evaluate` with "efficiency" added; data, split, notes and bounds are taken from it too.
    losses: "step" and one list per term, thinned here. items: the "items" of `dlip.evaluate`, for "outcomes".
    evaluations: of `dlip.records.evaluations`, thinned here too. Raises ValueError as `thin`, or if the role is not
    in `ROLES`.
    """
    import torch  # imported here because reading records needs no torch

    from dlip.common.distributed import world_size

    if role not in ROLES:
        raise ValueError(f"role {role!r} is not one of {', '.join(ROLES)}")
    config = _plain(config)
    record = {
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
        "losses": thin(losses),
        "metrics": {task: metrics.get(task) for task in ("retrieval", "captioning", "vqa", "attention")},
        "efficiency": metrics["efficiency"],
        "samples": list(samples)[:SAMPLES],
        "notes": metrics.get("notes") or {},
        "outcomes": packed(items or {}),
    }
    if evaluations:
        record["evaluations"] = evaluations | {"scores": thin(evaluations["scores"])}
    return _plain(record | ({"bounds": metrics["bounds"]} if "bounds" in metrics else {}))


def samples(items: dict, dataset) -> list[dict]:
    """Predictions on the first images beside the references; the reference answer is the annotators' most frequent."""
    captions = {row["image_id"]: row["caption"] for row in items.get("captioning", [])}
    answers: dict[int, list[dict]] = {}
    for row in items.get("vqa", []):
        answers.setdefault(row["image_id"], []).append(row)
    shown = []
    for item in (dataset[i] for i in range(min(SAMPLES, len(dataset)))):
        questions = [question for question in item.questions if question.answers]  # those that are evaluated
        shown.append({
            "image_id": item.image_id,
            "caption": captions.get(item.image_id),
            "references": item.captions,
            "questions": [question.text for question in questions],
            "answers": [row["answer"] for row in answers.get(item.image_id, [])],
            "truth": [max(question.answers, key=question.answers.count) for question in questions],
        })  # fmt: skip
    return shown


def failed_run(name: str, role: str, seed: int, ablation: dict, reason: str) -> dict:
    """The line of a failed run of a grid."""
    about = {"schema": SCHEMA, "failed": reason, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    return about | {"name": name, "role": role, "seed": seed, "ablation": ablation}


def thin(losses: dict[str, list[float]]) -> dict[str, list[float]]:
    """Curves reduced to at most `CURVE_POINTS` evenly spaced steps, the first and the last included.

    Raises ValueError if the lists differ in length.
    """
    lengths = {len(values) for values in losses.values()}
    if len(lengths) > 1:
        raise ValueError(f'the losses have lists of {sorted(lengths)} points; all must be as long as "step"')
    n = max(lengths, default=0)
    kept = np.linspace(0, n - 1, min(n, CURVE_POINTS)).round().astype(int)
    return {term: [values[i] for i in kept] for term, values in losses.items()}


def append(record: dict, path: str | Path) -> None:
    """Add one line to a file of records; it is on disk when this returns.

    Processes that append to one file wait for each other. Nothing already in the file is overwritten: after a
    half-written line the record starts a new one. Raises UserError if the file cannot be written.
    """
    path = Path(path)
    line = (json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(file.fileno(), line) < len(line):
                file.truncate(size)
                raise OSError("the disk is full")
            os.fsync(file.fileno())
            fsync_dir(path.parent)
    except OSError as error:
        raise UserError(
            f"the record cannot be added to {path}: {error.strerror or error}; choose another file"
        ) from error


def _plain(value):
    """A value as plain JSON: tuples as lists, numpy and torch numbers as Python's, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
