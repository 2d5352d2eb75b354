"""Records of grids of students with given scores."""

from functools import cache

import numpy as np

from dlip.experiments.ablation import identity
from dlip.experiments.grids import FULL, GRIDS, TEACHER_ROW, Row
from tests.helpers import make_record

IMAGES, CAPTIONS, QUESTIONS = 400, 5, 6
TEACHER = {"tr1": 0.8, "ir1": 0.6, "cider": 200.0, "vqa": 0.7}


@cache
def item_difficulty(score: str) -> np.ndarray:
    """Difficulty of each item in (0, 1), the same for all models that are evaluated on it."""
    items = {"ir1": CAPTIONS, "vqa": QUESTIONS}.get(score, 1) * IMAGES
    return np.random.default_rng(len(score)).permutation((np.arange(items) + 0.5) / items)


def student_record(row: Row, kept: float | dict[str, float], seed: int = 0) -> dict:
    """Record of a student that keeps `kept` percent of the teacher's scores, or a percentage of each score by name."""
    kept = kept if isinstance(kept, dict) else dict.fromkeys(TEACHER, kept)
    share = {score: kept[score] / 100 * full for score, full in TEACHER.items()}
    hits = {score: item_difficulty(score) < share[score] for score in ("tr1", "ir1", "vqa")}
    cider = share["cider"] * (0.5 + item_difficulty("cider"))
    items = {
        "tr": [{"image_id": i, "rank": 0 if hit else 3} for i, hit in enumerate(hits["tr1"])],
        "ir": [{"image_id": i // CAPTIONS, "rank": 0 if hit else 3} for i, hit in enumerate(hits["ir1"])],
        "captioning": [{"image_id": i, "cider": value} for i, value in enumerate(cider)],
        "vqa": [{"image_id": i // QUESTIONS, "accuracy": float(hit)} for i, hit in enumerate(hits["vqa"])],
    }
    return make_record(row.name, row.role, seed=seed, items=items) | {"ablation": {"hash": identity(row, FULL)}}


def grid_records(name: str, levels: dict, spread: float = 0.1, seeds: int = 3) -> list[dict]:
    """Records of the teacher and of a grid's rows. levels: row -> `kept`; the seeds of a row lie within `spread` of it,
    in another order for each row."""
    rng, records = np.random.default_rng(1), [student_record(TEACHER_ROW, 100.0)]
    for row in GRIDS[name].rows:
        if row.name in levels:
            level = levels[row.name]
            for seed, noise in enumerate(rng.permutation(np.linspace(-spread, spread, seeds))):
                kept = {k: v + noise for k, v in level.items()} if isinstance(level, dict) else level + noise
                records.append(student_record(row, kept, seed))
    return records
