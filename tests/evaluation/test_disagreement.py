"""The worst items first, each of another picture, with what both said."""

import pytest

from dlip.common.errors import UserError
from dlip.evaluation.disagreement import disagreements


def items(*rows: tuple) -> dict:
    """Items of (image, caption, CIDEr, question, answer, accuracy, rank)."""
    return {
        "captioning": [dict(image_id=i, caption=c, cider=s) for i, c, s, *_ in rows],
        "vqa": [dict(image_id=i, question=q, type="x", answer=a, accuracy=s) for i, _, _, q, a, s, _ in rows],
        "tr": [dict(image_id=row[0], rank=row[-1], itc_rank=0) for row in rows],
        "ir": [dict(image_id=row[0], caption=row[1], rank=row[-1], itc_rank=0) for row in rows],
    }


TEACHER = items((1, "a star", 90.0, "q?", "yes", 1.0, 0), (2, "a dot", 50.0, "q?", "no", 1.0, 1),
                (3, "a", 10.0, "q?", "no", 0.0, 3))  # fmt: skip
STUDENT = items((1, "a cross", 20.0, "q?", "no", 0.4, 1), (2, "a dot", 50.0, "q?", "yes", 0.0, 1),
                (3, "b", 30.0, "q?", "no", 0.0, 0))  # fmt: skip


def test_captions_are_compared_by_cider():
    df = disagreements(TEACHER, STUDENT, "captioning")
    assert df.to_dict("records") == [
        dict(image_id=1, asked="", teacher="a star", student="a cross", teacher_score=90.0, student_score=20.0,
             loss=70.0, measure="CIDEr x 100")
    ]  # fmt: skip


def test_captions_of_scenes_are_compared_by_their_facts():
    """Claims that are all true: of 4, 4 recalled or 2 recalled, whatever their wording scores."""
    full, half = ([[n, n, n, 4], [0, 0, 0, 0], [0, 0, 0, 0]] for n in (4, 2))
    rows = [[dict(image_id=1, caption="x", cider=cider, facts=facts)] for cider, facts in ((10.0, full), (90.0, half))]
    (row,) = disagreements({"captioning": rows[0]}, {"captioning": rows[1]}).to_dict("records")
    assert row["teacher_score"] == pytest.approx(100.0) and row["student_score"] == pytest.approx(200 / 3)
    assert row["measure"] == "% facts F1"


def test_answers_are_sorted_by_loss_of_accuracy():
    df = disagreements(TEACHER, STUDENT, "vqa")
    assert (list(df["image_id"]), list(df["loss"]), list(df["asked"])) == ([2, 1], [100.0, 60.0], ["q?", "q?"])
    assert list(disagreements(TEACHER, STUDENT, "vqa", count=1)["image_id"]) == [2]


def test_retrieval_is_compared_by_rank():
    df = disagreements(TEACHER, STUDENT, "tr")
    assert (list(df["image_id"]), list(df["loss"])) == ([1], [50.0])
    assert (df["teacher"][0], df["student"][0]) == ("rank 1", "rank 2")


def test_incomparable_items_are_refused():
    with pytest.raises(UserError, match="no items of 'vqa' to compare; choose one of captioning$"):
        disagreements({"captioning": TEACHER["captioning"]}, STUDENT, "vqa")
    # captions that are looked for are the same for both, and here they are not
    for task, fewer in (("captioning", {"captioning": STUDENT["captioning"][:2]}), ("ir", STUDENT)):
        with pytest.raises(UserError, match="evaluated on different data"):
            disagreements(TEACHER, fewer, task)
