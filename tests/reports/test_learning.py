"""The learning curve in a terminal."""

import re

from dlip.records.schema import HEADLINE_SCORES
from dlip.reports.learning import learning_lines
from tests.helpers import make_evaluations

TEACHER = dict.fromkeys(HEADLINE_SCORES, 80.0)


def test_a_line_per_evaluation_in_percent_of_the_teacher():
    values = {column: [20.0, 40.0 + 10 * i, 120.0] for i, column in enumerate(HEADLINE_SCORES)}
    head, *lines = learning_lines(make_evaluations([100, 200, 12_000], TEACHER, **values))
    assert "100 images of scenes val" in head and "%" in head
    assert [line.split()[:2] for line in lines] == [["step", "100"], ["step", "200"], ["step", "12000"]]
    assert [re.findall(r"(\d+)%", line) for line in lines] == [
        ["25"] * len(values), [f"{(40 + 10 * i) / 0.8:.0f}" for i in range(len(values))], ["150"] * len(values),
    ]  # fmt: skip
    assert all(name in line for name in HEADLINE_SCORES.values() for line in lines)
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100 and all(line.isascii() for line in lines)


def test_bar_is_full_at_the_teachers_score():
    column = next(iter(HEADLINE_SCORES))
    _, *lines = learning_lines(make_evaluations([1, 2, 3, 4], TEACHER, **{column: [0.0, 40.0, 80.0, 160.0]}))
    bars = [re.search(r"[#.]+(?= )", line)[0] for line in lines]
    assert [bar.count("#") / len(bar) for bar in bars] == [0, 0.5, 1, 1]


def test_unmeasured_scores_and_no_teacher():
    column, name = next(iter(HEADLINE_SCORES.items()))
    made = make_evaluations([1, 2], {column: 80.0}, **{column: [None, 8.0]})
    assert [line.split()[-1] for line in learning_lines(made)[1:]] == ["-", "10%"]
    head, line = learning_lines(make_evaluations([1], **{column: [12.34]}))
    assert line.split() == ["step", "1", *name.split(), "12.3"] and "%" not in head
    assert learning_lines(None) == []


def test_captions_without_facts():
    """A captioner of photographs has CIDEr alone."""
    lines = learning_lines(make_evaluations([1, 2], cider=[5.0, 6.0]))
    assert [line.split() for line in lines[1:]] == [["step", "1", "CIDEr", "5.0"], ["step", "2", "CIDEr", "6.0"]]
