"""The items on which a student loses most against its teacher, picked from what both said of the same data."""

from collections.abc import Iterable

import pandas as pd

from dlip.common.errors import UserError

COLUMNS = ("image_id", "asked", "teacher", "student", "teacher_score", "student_score", "loss")
MEASURES = {"captioning": "CIDEr x 100", "vqa": "% accuracy", "tr": "100 / place", "ir": "100 / place"}


def disagreements(
    teacher: dict[str, list[dict]], student: dict[str, list[dict]], task: str = "captioning", count: int = 12
) -> pd.DataFrame:
    """At most `count` items, the worst first, each of another picture.

    teacher, student: "items" of `dlip.evaluate` on the same data. task: "captioning", "vqa", or the retrieval of a
    picture's caption ("tr") or of a caption's picture ("ir"), scored as `MEASURES` says.
    Columns: image_id; asked (question, or caption that is looked for, or ""); teacher and student (what they said);
    teacher_score, student_score; loss, the first less the second, above 0; measure. Raises
    UserError where a model has no items of the task or they are of other data.
    """
    tables = [items.get(task) for items in (teacher, student)]
    if task not in _READ or not all(tables):
        there = [name for name in _READ if teacher.get(name) and student.get(name)]
        raise UserError(
            f"the two models have no items of {task!r} to compare; choose one of {', '.join(there) or 'none'}"
        )
    theirs, ours = (list(map(_READ[task], table)) for table in tables)
    if [row[:2] for row in theirs] != [row[:2] for row in ours]:
        raise UserError("the two models were evaluated on different data; evaluate both on the same split and limit")
    rows = [
        (*mine[:2], other[2], mine[2], other[3], mine[3], other[3] - mine[3])
        for other, mine in zip(theirs, ours, strict=True)
    ]
    df = pd.DataFrame(rows, columns=COLUMNS)
    df = df[df["loss"] > 0].sort_values("loss", ascending=False, kind="stable").drop_duplicates("image_id")
    return df.head(count).reset_index(drop=True).assign(measure=MEASURES[task])


def _caption(row: dict) -> tuple:
    return row["image_id"], "", row["caption"], row["cider"]


def _vqa(row: dict) -> tuple:
    return row["image_id"], row["question"], row["answer"], 100 * row["accuracy"]


def _ranked(row: dict) -> tuple:
    place = row["rank"] + 1
    return row["image_id"], row.get("caption", ""), f"found at place {place:,}", 100 / place


_READ = {"captioning": _caption, "vqa": _vqa, "tr": _ranked, "ir": _ranked}


def items_of(dataset, image_ids: Iterable[int]) -> dict:
    """image_id -> Item, of the pictures asked for."""
    wanted, found = set(image_ids), {}
    for i in range(len(dataset)):
        if wanted <= found.keys():
            break
        item = dataset[i]
        if item.image_id in wanted:
            found[item.image_id] = item
    return found
