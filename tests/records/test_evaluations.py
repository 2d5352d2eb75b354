"""Evaluations during training: from the log of a run to its record."""

import math

import pytest

from dlip.records import read
from dlip.records.evaluations import evaluations, percent
from dlip.records.schema import is_record
from dlip.records.write import append
from tests.helpers import make_evaluations, make_record


def eval_row(step: int, tr1: float, accuracy: float | None = None, **others) -> dict:
    metrics = {
        "model": "student", "data": "scenes", "split": "val", "retrieval": {"tr@1": tr1, "itc_tr@5": 1.0},
        "captioning": None, "vqa": accuracy and {"accuracy": accuracy}, "notes": {"captioning": "not trained"},
    }  # fmt: skip
    return {"step": step, "eval": metrics | others, "seconds": 1.0}


def test_columns_of_a_log():
    teacher = eval_row(0, 80.0, 90.0)["eval"]
    rows = [{"step": 1, "losses": {"lm": 1.0}}, eval_row(2, 20.0, teacher=teacher), eval_row(4, 40.0, 30.0)]
    assert evaluations(rows, 50) == {
        "data": "scenes", "split": "val", "images": 50, "teacher": {"tr1": 80.0, "vqa": 90.0},
        "scores": {"step": [2, 4], "tr1": [20.0, 40.0], "vqa": [None, 30.0]},
    }  # fmt: skip
    assert evaluations(rows[2:], 50)["teacher"] == {}
    assert evaluations(rows[:1], 50) is None


def test_percent_of_a_level():
    assert percent([20.0, None, 0.0], 80.0) == [25.0, None, 0.0]


def test_record_keeps_a_thinned_curve(tmp_path):
    steps = list(range(1, 1001))
    made = make_evaluations(steps, {"tr1": 80.0}, tr1=[math.nan, *(step / 10 for step in steps[1:])])
    append(make_record(evaluations=made), tmp_path / "r.jsonl")
    (record,) = read(tmp_path / "r.jsonl")
    kept = record["evaluations"]
    assert len(kept["scores"]["step"]) == 100 and kept["scores"]["step"][-1] == 1000
    assert kept["scores"]["tr1"][0] is None and kept["scores"]["tr1"][1:] == [
        s / 10 for s in kept["scores"]["step"][1:]
    ]
    assert {name: value for name, value in kept.items() if name != "scores"} == {
        name: value for name, value in made.items() if name != "scores"
    }


def test_records_without_evaluations_are_complete():
    record = make_record()
    assert "evaluations" not in record and is_record(record)
    assert not is_record(record | {"evaluations": [1]})


def test_uneven_curves_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 2\] points"):
        make_record(evaluations=make_evaluations([1, 2], tr1=[1.0]))
