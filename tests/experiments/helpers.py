"""Records of grids of students with given scores."""

import base64
import zlib
from copy import deepcopy
from functools import cache

import numpy as np

from dlip.experiments.ablation import identity
from dlip.experiments.grids import FULL, GRIDS, TEACHER_ROW, Plan, Row
from tests.helpers import make_record

IMAGES, CAPTIONS, QUESTIONS = 400, 2, 3
"""Test images, and captions and questions of each; each question is of another type."""
TEACHER = {"tr1": 0.8, "ir1": 0.6, "cider": 200.0, "facts_f1": 0.9, "vqa_mean": 0.7}
FLOOR = {"tr1": 0.0, "ir1": 0.1, "cider": 0.0, "facts_f1": 0.4, "vqa_mean": 0.2}
"""What 100 and 0 points are."""
RANGE = {score: TEACHER[score] - FLOOR[score] for score in TEACHER}
BOUNDS = {
    "retrieval": {"tr@1": 0.0, "ir@1": 10.0},
    "captioning": {"cider": 0.0, "facts_f1": 40.0},
    "vqa": {"accuracy": 20.0, "mean_by_type": 20.0},
}
"""`FLOOR` as a record has it."""


@cache
def difficulty(score: str, items: int = 1) -> np.ndarray:
    """Difficulty of each item in (0, 1), [IMAGES, items], the same for all models that are evaluated on it."""
    rng, even = np.random.default_rng([*score.encode()]), (np.arange(IMAGES) + 0.5) / IMAGES
    return np.stack([rng.permutation(even) for _ in range(items)], 1)


def student_record(row: Row, points: float | dict[str, float], seed: int = 0) -> dict:
    """Record of a student with these points in every score, or in each score by name."""
    points = points if isinstance(points, dict) else dict.fromkeys(TEACHER, points)
    score = {name: FLOOR[name] + points.get(name, 0.0) / 100 * RANGE[name] for name in TEACHER}
    true = difficulty("facts_f1") < score["facts_f1"]
    columns = {
        "tr1": difficulty("tr1") < score["tr1"],
        "ir1": difficulty("ir1", CAPTIONS) < score["ir1"],
        "cider": score["cider"] * (0.5 + difficulty("cider")),
        "facts": np.concatenate([true, np.ones_like(true), true, np.ones_like(true)] * 3, 1),
        "vqa": difficulty("vqa_mean", QUESTIONS) < score["vqa_mean"],
        "vqa_type": np.tile(np.arange(QUESTIONS), IMAGES),
        "captions": np.full(IMAGES, CAPTIONS),
        "questions": np.full(IMAGES, QUESTIONS),
    }
    about = {"name": row.name, "role": row.role, "seed": seed, "ablation": {"hash": cached_identity(row, FULL)}}
    about |= {"bounds": {"floor": BOUNDS}} if row.role == "teacher" else {}
    return deepcopy(empty_record()) | about | {"outcomes": {name: pack(values) for name, values in columns.items()}}


def pack(values: np.ndarray) -> str:
    """A column of outcomes as `dlip.records` documents it, compressed less."""
    return base64.b64encode(zlib.compress(values.astype("<f2").tobytes(), 1)).decode()


@cache
def empty_record() -> dict:
    return make_record()


def cached_identity(row: Row, plan: Plan, known: dict = {}) -> str:  # noqa: B006
    """`identity`, which takes milliseconds, of every row once."""
    key = repr((row, plan))
    if key not in known:
        known[key] = identity(row, plan)
    return known[key]


def grid_records(name: str, levels: dict, spread: float = 0.1, seeds: int = 6) -> list[dict]:
    """Records of the teacher and of a grid's rows. levels: row -> points; the seeds of a row lie within `spread` of
    them, in another order for each row."""
    rng, records = np.random.default_rng(1), [student_record(TEACHER_ROW, 100.0)]
    for row in GRIDS[name].rows:
        if row.name in levels:
            level = levels[row.name]
            for seed, noise in enumerate(rng.permutation(np.linspace(-spread, spread, seeds))):
                points = {k: v + noise for k, v in level.items()} if isinstance(level, dict) else level + noise
                records.append(student_record(row, points, seed))
    return records
