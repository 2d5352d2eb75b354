"""The Disagreements tab against dlip called directly."""

import math

import pytest

from app.tabs import disagreements as page
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.facts import count_facts, facts_f1
from dlip.evaluation import disagreement
from dlip.evaluation.evaluate import evaluate

TEACHER, STUDENT = "scenes/teacher", "scenes/student"


def test_photo_models_are_not_compared_on_scenes():
    with pytest.raises(UserError, match="photos/student and photos/teacher learned photographs"):
        page.disagreements("photos/teacher", "photos/student")


def test_disagreements_equal_those_of_dlip():
    shares = []
    result = page.disagreements(TEACHER, STUDENT, "answers", 50, shares.append)
    items = [evaluate(name, Scenes("test", size=50), tasks=("vqa",), return_items=True, progress=False)["items"]
             for name in (TEACHER, STUDENT)]  # fmt: skip
    rows = disagreement.disagreements(*items, "vqa")
    assert result == rows.to_dict("records") and result[0]["loss"] == 100
    assert shares == sorted(shares) and len(shares) == 2 * math.ceil(50 / page.BATCH) and shares[-1] == 1
    shown = page.show(result, (TEACHER, STUDENT))
    assert shown.count("<article>") == len(result) == shown.count("<img") and result[0]["asked"] in shown
    assert "loses on no item" in page.show([], (TEACHER, STUDENT))
    for arguments, message in (
        (("spelling", 10), "task is 'spelling'"),
        (("answers", 5000), "images is 5000"),
    ):
        with pytest.raises(UserError, match=message):
            page.disagreements(TEACHER, STUDENT, *arguments)


def test_other_requests_run_while_retrieval_ranks():
    shares = []
    page.disagreements(TEACHER, STUDENT, "images found by caption", 10, shares.append)
    assert shares == sorted(shares) and len(shares) > 2 * 10 and shares[-1] == 1


def test_captions_are_compared_by_their_facts():
    result = page.disagreements(TEACHER, STUDENT, "captions", 50)
    scenes = {scene.image_id: scene for scene in map(Scenes("test").scene, range(50))}
    for row in result:
        counts = [count_facts(row[side], scenes[row["image_id"]]) for side in ("teacher", "student")]
        teacher, student = map(facts_f1, counts)
        assert row["loss"] == pytest.approx(100 * (teacher - student)) and row["loss"] > 0
    assert result and {row["measure"] for row in result} == {"% facts F1"}
