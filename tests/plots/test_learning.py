"""Learning curves in percent of the teacher's score."""

import pytest

from dlip.common.errors import UserError
from dlip.plots import COLORS, learned_scores, learning_curves
from tests.helpers import make_evaluations, make_record

TEACHER = {"tr1": 80.0, "vqa": 50.0}


def test_curves_are_percents_of_the_teacher():
    made = make_evaluations([10, 20, 30], TEACHER, tr1=[8.0, 40.0, 60.0], vqa=[5.0, None, 45.0])
    record = make_record(evaluations=made)
    fig = learning_curves([record, make_record("never evaluated")], "tr1")
    (line,) = fig.data
    assert (list(line.x), list(line.y)) == ([10, 20, 30], [10.0, 50.0, 75.0])
    assert line.line.color == COLORS["distilled"] and line.mode == "lines+markers"
    (mark,) = fig.layout.shapes
    assert mark.y0 == mark.y1 == 100 and mark.line.color == COLORS["teacher"]
    assert fig.layout.yaxis.range[0] == 0 and 100 < fig.layout.yaxis.range[1] < 120
    assert "75%" in fig.layout.title.text
    assert list(learning_curves([record], "vqa").data[0].y) == [10.0, None, 90.0]


def test_axis_reaches_a_student_above_its_teacher():
    record = make_record(evaluations=make_evaluations([1, 2], {"tr1": 20.0}, tr1=[10.0, 30.0]))
    assert learning_curves([record], "tr1").layout.yaxis.range[1] > 150


def test_runs_without_a_teacher_share_that_of_the_same_images():
    taught = make_record("taught", evaluations=make_evaluations([1], TEACHER, tr1=[60.0]))
    alone = make_record("alone", "undistilled", evaluations=make_evaluations([1], tr1=[40.0]))
    elsewhere = make_record("elsewhere", "undistilled", evaluations=make_evaluations([1], images=7, tr1=[20.0]))
    fig = learning_curves([alone, elsewhere, taught], "tr1")
    assert {trace.name: list(trace.y) for trace in fig.data} == {"undistilled": [50.0], "distilled": [75.0]}
    other = make_record("other", evaluations=make_evaluations([1], {"tr1": 30.0}, tr1=[15.0]))
    for records in ([taught, other], [other, taught]):
        ends = {trace.y[0] for trace in learning_curves(records, "tr1").data}
        assert ends == {75.0, 50.0}  # each of its own teacher
    raw = learning_curves([alone, elsewhere], "tr1")
    assert [list(trace.y) for trace in raw.data] == [[40.0], [20.0]] and not raw.layout.shapes


def test_scores_of_records():
    evaluated = make_record(evaluations=make_evaluations([1], vqa=[1.0], tr1=[2.0]))
    assert learned_scores([make_record(), evaluated]) == ["vqa", "tr1"]
    with pytest.raises(UserError, match="'cider'.* choose one of vqa, tr1"):
        learning_curves([evaluated], "cider")
    with pytest.raises(UserError, match="none"):
        learning_curves([make_record()], "tr1")
