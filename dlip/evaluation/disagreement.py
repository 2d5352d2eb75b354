"""The items on which a student is worst compared with its teacher, from evaluations on the same data."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from dlip.common.errors import UserError
from dlip.data.scenes.facts import facts_f1

MEASURES = {
    "captioning": "CIDEr x 100",
    "facts": "% facts F1",
    "vqa": "% accuracy",
    "tr": "100 / rank",
    "ir": "100 / rank",
}
"""What items are scored by, by their table. Captions of scenes are scored by "facts", as CIDEr compares wording."""


def disagreements(
    teacher: dict[str, list[dict]], student: dict[str, list[dict]], task: str = "captioning", count: int = 12
) -> pd.DataFrame:
    """At most `count` items, the worst first, one for each image.

    teacher, student: "items" of `dlip.evaluate` on the same data. task: a table of items: "captioning", "vqa", "tr" (a
    caption for an image) or "ir" (an image for a caption), scored as in `MEASURES`; captions of scenes by their facts.

    Columns: image_id; asked (the question, the caption of "ir", or ""); teacher and student (their outputs);
    teacher_score, student_score; loss, their difference, above 0; measure. Raises UserError where a model has no such
    items, or the items are of different data.
    """
    tables = [items.get(task) for items in (teacher, student)]
    if task not in _READERS or not all(tables):
        existing = [name for name in _READERS if teacher.get(name) and student.get(name)]
        raise UserError(
            f"the two models have no items of {task!r} to compare; choose one of {', '.join(existing) or 'none'}"
        )
    key, rows = ["image_id", "asked"], (map(_READERS[task], table) for table in tables)
    teacher_df, student_df = (pd.DataFrame(table, columns=[*key, "output", "score"]) for table in rows)
    if not teacher_df[key].equals(student_df[key]):
        raise UserError("the two models were evaluated on different data; evaluate both on the same split and limit")
    df = teacher_df[key].assign(teacher=teacher_df["output"], student=student_df["output"])
    df = df.assign(teacher_score=teacher_df["score"], student_score=student_df["score"])
    df = df.assign(loss=df["teacher_score"] - df["student_score"])
    df = df[df["loss"] > 0].sort_values("loss", ascending=False, kind="stable").drop_duplicates("image_id")
    measure = MEASURES["facts" if task == "captioning" and "facts" in tables[0][0] else task]
    return df.head(count).reset_index(drop=True).assign(measure=measure)


def _caption(row: dict) -> tuple:
    score = 100 * float(facts_f1(np.array(row["facts"]))) if "facts" in row else row["cider"]
    return row["image_id"], "", row["caption"], score


def _vqa(row: dict) -> tuple:
    return row["image_id"], row["question"], row["answer"], 100 * row["accuracy"]


def _ranked(row: dict) -> tuple:
    rank = row["rank"] + 1
    return row["image_id"], row.get("caption", ""), f"rank {rank:,}", 100 / rank


_READERS = {"captioning": _caption, "vqa": _vqa, "tr": _ranked, "ir": _ranked}


def items_of(dataset, image_ids: Iterable[int]) -> dict:
    """image_id -> Example, of the requested images."""
    missing, items = set(image_ids), {}
    for i in range(len(dataset)):
        if not missing:
            break
        item = dataset[i]
        if item.image_id in missing:
            items[item.image_id] = item
            missing.remove(item.image_id)
    return items
