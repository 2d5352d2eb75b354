"""Figures of the notebooks: one run's losses by term, scores by pictures, words side by side."""

import pandas as pd
import pytest

from dlip.common.errors import UserError
from dlip.data.batch import Item, Question
from dlip.plots import COLOURS, data_curves, module_curves, term_curves, words
from dlip.plots.training import SHADES
from dlip.records import frame
from dlip.training.terms import TERMS
from tests.helpers import make_record


def test_terms_stand_in_the_panel_of_their_group():
    losses = {"step": [10, 20], "itc": [4.0, 2.0], "lm": [3.0, 1.0], "hr.image": [0.9, 0.5], "total": [7.9, 3.5]}
    fig = term_curves(losses, 100)
    assert [(trace.name, trace.xaxis) for trace in fig.data] == [("itc", "x"), ("lm", "x"), ("hr.image", "x2")]
    assert list(fig.data[1].y) == [3.0, 1.0] and list(fig.data[1].x) == [10, 20]
    assert [trace.line.color for trace in fig.data] == [SHADES[0], SHADES[1], SHADES[0]]
    assert fig.layout.xaxis2.range == (0, 100) and fig.layout.xaxis.domain[1] < fig.layout.xaxis2.domain[0]
    heads = [note.text for note in fig.layout.annotations]
    assert "(nats)" in heads[0] and "(1 − cosine)" in heads[1] and "image" in heads[1]
    assert fig.layout.title.text.replace("<br>", " ").endswith("has fallen from 7.90 to 3.50")


def test_every_term_has_a_line():
    fig = term_curves({"step": [1, 2], **dict.fromkeys(TERMS, [2.0, 1.0]), "total": [9.0, 8.0]})
    assert {trace.name for trace in fig.data} == set(TERMS)
    assert len({(trace.xaxis, trace.line.color) for trace in fig.data}) == len(TERMS)


def test_term_curves_say_that_a_loss_has_risen_or_not_begun():
    assert "risen from 1.00 to 2.00" in term_curves({"step": [1, 2], "itc": [1, 2], "total": [1, 2]}).layout.title.text
    joins = {"step": [1, 2, 3], "itc": [1.0, 0.5, 0.4], "lm": [None, 3.0, 2.0], "total": [1.0, 3.5, 2.4]}
    title = term_curves(joins).layout.title.text.replace("<br>", " ")
    assert title.endswith("has fallen from 3.50 to 2.40, since all terms have joined by step 2")
    assert term_curves({}, 5).layout.title.text == "The first steps are under way" and not term_curves({}, 5).data


def test_no_term_has_the_colour_of_a_role():
    assert not set(SHADES) & set(COLOURS.values())


def runs() -> pd.DataFrame:
    rows = [
        make_record(f"{role} {count}", role=role, seed=seed, tr1=tr1 + seed) | {"train_images": count}
        for role, count, tr1 in (
            ("undistilled", 250, 10.0), ("distilled", 250, 30.0),
            ("undistilled", 4000, 60.0), ("distilled", 4000, 59.0),
        )
        for seed in range(3)
    ]  # fmt: skip
    return frame([make_record("teacher", role="teacher", tr1=80.0), *rows])


def test_data_curves_are_means_over_seeds_by_role():
    fig = data_curves(runs(), "tr1")
    lines = {trace.name: trace for trace in fig.data}
    assert set(lines) == {"undistilled", "distilled"}
    assert list(lines["distilled"].x) == [250, 4000] and list(lines["distilled"].y) == [31.0, 60.0]
    assert list(lines["distilled"].error_y.array) == [1.0, 1.0]
    assert lines["undistilled"].line.color == COLOURS["undistilled"]
    assert fig.layout.title.text.replace("<br>", " ") == (
        "Distillation adds to TR@1 most at 250 pictures (+20.0), least at 4,000 (−1.0)"
    )


def test_data_curves_say_what_is_missing():
    with pytest.raises(UserError, match="no run of the data has tr1"):
        data_curves(frame([]), "tr1")


def test_words_mark_where_a_student_differs():
    items = [Item(make_picture(), 1, ["a red star"], [Question("what color?", ["red"])])]
    said = [("big", "teacher", ["a red star"]), ("<small>", "distilled", ["a blue star"])]
    html = words(items, [""], said)
    assert "a <mark>blue</mark> star" in html and html.count("<mark>") == 1 and "&lt;small&gt;" in html
    assert COLOURS["teacher"] in html and COLOURS["distilled"] in html
    asked = words(items, ["what color?"], said)
    assert "<b>what color?</b><br>red" in asked


def make_picture():
    from PIL import Image

    return Image.new("RGB", (8, 8), "red")


def test_a_size_has_one_tick_though_the_other_encoder_changes_its_parameters():
    about = dict(role="distilled", swept="text", tr1=50.0, tr1_sd=0.5)
    rows = [("tiny", 0.09, "small"), ("tiny", 0.11, "base"), ("base", 1.5, "small"), ("base", 1.7, "base")]
    fig = module_curves(pd.DataFrame([dict(about, size=s, encoder_m=m, fixed=f) for s, m, f in rows]))
    assert list(fig.layout.xaxis.ticktext) == ["tiny<br>0.1", "base<br>1.6"]
