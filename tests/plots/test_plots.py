"""Figures show what the records say, in the colours of their roles."""

import random
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from dlip.common.errors import UserError
from dlip.data.batch import Item, Question
from dlip.plots import (
    COLOURS,
    LABELS,
    accuracy_cost,
    cards,
    gain_bars,
    loss_curves,
    module_curves,
    pareto,
    score_rows,
    terms,
)
from dlip.records import frame
from dlip.records.schema import COSTS, FIGURES, ROLES, SCORES
from tests.helpers import make_record
from tests.plots.helpers import traces_by_name


@pytest.fixture
def records() -> list[dict]:
    students = [
        make_record(role, role=role, seed=seed, tr1=tr1 + seed, params=1.0, latency=20.0 + seed)
        for role, tr1 in (("undistilled", 60.0), ("distilled", 76.0)) for seed in range(3)
    ]  # fmt: skip
    return [make_record("teacher", role="teacher", tr1=80.0, params=4.0, latency=50.0), *students]


@pytest.mark.parametrize("seed", range(20))
def test_pareto_front_is_that_of_brute_force(seed: int):
    rng = random.Random(seed)
    points = [(rng.randint(0, 6), rng.randint(0, 6)) for _ in range(25)]  # with ties and equals
    points[3] = (float("nan"), 6)

    def beaten(i: int) -> bool:
        cost, score = points[i]
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    front = pareto(*map(list, zip(*points, strict=True)))
    assert sorted(front) == [i for i in range(25) if i != 3 and not beaten(i)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_pareto_front_of_nothing():
    assert pareto([], []) == [] and pareto([1.0], [float("nan")]) == []


def test_accuracy_cost_shows_means_and_spread_in_the_colours_of_roles(records: list[dict]):
    traces = traces_by_name(accuracy_cost(frame(records), "latency_ms", "tr1"))
    for role in ROLES:
        assert traces[role].marker.color == COLOURS[role]
    assert (traces["distilled"].x[0], traces["distilled"].y[0]) == (21.0, 77.0)
    assert (traces["distilled"].error_x.array[0], traces["distilled"].error_y.array[0]) == (1.0, 1.0)
    assert traces["teacher"].error_y.array[0] == 0.0
    assert list(traces["distilled"].customdata) == ["distilled"]  # what a click on the point names
    assert len(set(COLOURS.values())) == 3


def test_accuracy_cost_joins_the_models_that_none_beats(records: list[dict]):
    front = traces_by_name(accuracy_cost(frame(records), "params_m", "tr1"))["none better at this cost"]
    assert list(zip(front.x, front.y, strict=True)) == [(1.0, 77.0), (4.0, 80.0)] and front.showlegend
    alone = traces_by_name(accuracy_cost(frame(records[:1]), "params_m", "tr1"))["none better at this cost"]
    assert not alone.showlegend  # there is no line


def test_accuracy_cost_marks_what_is_kept(records: list[dict]):
    fig = accuracy_cost(frame(records), "params_m", "tr1")
    assert [line.y0 for line in fig.layout.shapes] == pytest.approx([76.0, 79.2])
    assert [note.text for note in fig.layout.annotations] == ["95% kept", "99% kept"]


def test_names_of_points_stand_clear_of_each_other_or_are_left_out():
    """As student-40k and student-undistilled-40k, which are as large as each other and nearly as good."""
    near = {"teacher": 98.6, "student": 98.7, "student-undistilled": 97.7, "student-40k": 98.3,
            "student-undistilled-40k": 98.6, "twin": 98.301}  # fmt: skip
    roles = {"teacher": "teacher", "student-undistilled": "undistilled", "student-undistilled-40k": "undistilled"}
    made = [make_record(name, role=roles.get(name, "distilled"), tr1=tr1, params=3.06 if name == "teacher" else 0.62)
            for name, tr1 in near.items()]  # fmt: skip
    fig = accuracy_cost(frame(made), "params_m", "tr1")
    width, height = 480 / fig.layout.xaxis.range[1], 300 / np.diff(fig.layout.yaxis.range)[0]
    points, boxes = [], {}
    for trace in fig.data[1:]:
        for x, y, text, place, name in zip(
            trace.x, trace.y, trace.text, trace.textposition, trace.customdata, strict=True
        ):
            at = (x * width, y * height)
            points.append(at)
            up, side = place.split()
            low = at[1] + {"top": 8, "middle": -7, "bottom": -22}[up]
            wide = 6.5 * len(text)
            start = at[0] + {"left": -8 - wide, "center": -wide / 2, "right": 8}[side]
            if text:
                assert text == name and start >= 0
                boxes[name] = (start, low, start + wide, low + 14)
    assert {"teacher", "student-undistilled"} <= boxes.keys()
    for name, (left, low, right, high) in boxes.items():
        assert not any(left < x < right and low < y < high for x, y in points), name
        for other, (left2, low2, right2, high2) in boxes.items():
            assert other == name or not (left < right2 and left2 < right and low < high2 and low2 < high), (name, other)


def test_a_name_without_room_is_left_out_and_stays_in_the_hover():
    made = [make_record(f"one-of-many-students-{i}", params=0.62) for i in range(8)]
    (points,) = [trace for trace in accuracy_cost(frame(made)).data if trace.name == "distilled"]
    assert 1 <= sum(map(bool, points.text)) < 8
    assert all(name in text for name, text in zip(points.customdata, points.hovertext, strict=True))


def test_accuracy_cost_says_its_finding_and_units(records: list[dict]):
    fig = accuracy_cost(frame(records), "params_m", "tr1")
    title = fig.layout.title.text.replace("<br>", " ")
    assert title == "The distilled student keeps 96.2% of TR@1 with 25% of the parameters; without distillation 76.2%"
    assert fig.layout.xaxis.title.text == "parameters (M)" and fig.layout.yaxis.title.text == "TR@1 (%)"
    assert accuracy_cost(frame(records), title="Mine").layout.title.text == "Mine"
    other = [r | {"train_images": 9} if r["role"] == "undistilled" else r for r in records]
    title = accuracy_cost(frame(other), "params_m", "tr1").layout.title.text.replace("<br>", " ")
    assert title == "The distilled student keeps 96.2% of TR@1 with 25% of the parameters"  # there is none like it
    students = [r for r in records if r["role"] != "teacher"]
    assert accuracy_cost(frame(students)).layout.title.text == "TR@1 against parameters"


def test_accuracy_cost_names_the_student_among_several(records: list[dict]):
    better = make_record("b", tr1=78.0, params=1.0)
    larger = make_record("c", tr1=80.0, params=2.0)
    title = accuracy_cost(frame([*records, better, larger])).layout.title.text
    assert title.startswith("The distilled student b keeps 97.5% of TR@1 with 25%")


def test_accuracy_cost_says_what_is_best_where_none_keeps_enough(records: list[dict]):
    few = [r for r in records if r["role"] != "distilled"]
    low = [make_record("cheap", tr1=40.0, params=0.5), make_record("dear", tr1=70.0, params=2.0)]
    title = accuracy_cost(frame([*few, *low])).layout.title.text
    assert title.startswith("The distilled student dear keeps 87.5% of TR@1 with 50%")


def test_hover_tells_configuration_and_command_and_escapes_them():
    record = make_record("<i>x</i>", command="dlip train --out '<b>'")
    points = traces_by_name(accuracy_cost(frame([record])))["distilled"]
    assert points.text[0] == "&lt;i&gt;x&lt;/i&gt;"
    for part in ("<b>&lt;i&gt;x&lt;/i&gt;</b> (distilled, 1 seed)", "image 64 x 4", "--out", "&lt;b&gt;"):
        assert part in points.hovertext[0]


def test_wrong_axes_and_mixed_data_are_named(records: list[dict]):
    df = frame(records)
    for axes, fault in ((("tr1", "ir1"), "'tr1' cannot be an axis"), (("params_m", "wall_s"), "'wall_s' cannot"),
                        (("params_m", "spice"), "no record has both")):  # fmt: skip
        with pytest.raises(UserError, match=fault):
            accuracy_cost(df, *axes)
    with pytest.raises(UserError, match="the records are of scenes test; other test; keep"):
        accuracy_cost(frame([*records, make_record(data="other")]))


def test_every_cost_and_score_can_be_an_axis_and_has_a_unit():
    df = frame([make_record("t", role="teacher"), make_record("s")])
    df[FIGURES] = np.repeat([[2.0], [1.0]], len(FIGURES), axis=1)
    axes = [*((cost, "tr1") for cost in COSTS), *(("params_m", score) for score in SCORES)]
    for cost, score in axes:
        layout = accuracy_cost(df, cost, score).layout
        assert (layout.xaxis.title.text, layout.yaxis.title.text) == tuple(
            "{} ({})".format(*LABELS[c]) for c in (cost, score)
        )


def test_loss_curves_are_a_line_a_run_in_the_colours_of_roles():
    curve = {"step": [10, 20], "lm": [3.0, 1.0], "total": [3.0, 1.0]}
    records = [make_record(role, role=role, seed=seed, losses=curve) for role in ROLES for seed in range(2)]
    fig = loss_curves([*records, make_record("other", losses={"step": [1], "itc": [1.0]})], "lm")
    assert [trace.line.color for trace in fig.data] == [COLOURS[role] for role in ROLES for _ in range(2)]
    assert [trace.showlegend for trace in fig.data] == [True, False] * 3
    assert (list(fig.data[0].x), list(fig.data[0].y)) == ([10, 20], [3.0, 1.0])
    assert (fig.layout.xaxis.title.text, fig.layout.yaxis.title.text) == ("step", "nats")
    assert fig.layout.title.text == "lm ends at 1.00 teacher, 1.00 undistilled, 1.00 distilled"


def test_loss_finding_is_the_mean_of_the_last_tenth_over_seeds():
    def losses(end: float) -> dict:
        return {"step": list(range(20)), "lm": [9.0] * 18 + [end - 1, end + 1]}

    seeds = [make_record("a", seed=seed, losses=losses(end)) for seed, end in enumerate((2.0, 4.0))]
    assert loss_curves(seeds, "lm").layout.title.text == "lm ends at 3.00 distilled"
    other = make_record("b", losses=losses(5.0))
    assert loss_curves([*seeds, other], "lm").layout.title.text == "lm ends at 3.00 to 5.00 distilled"


def test_loss_terms_and_their_lack(records: list[dict]):
    assert terms([*records, make_record(losses={"step": [1], "kd.lm": [1.0], "lm": [1.0]})]) == ["lm", "kd.lm"]
    with pytest.raises(UserError, match="no record has losses of 'itc'; choose one of lm"):
        loss_curves(records, "itc")


# --- module curves ----------------------------------------------------------------------------------------------------


@pytest.fixture
def curves() -> pd.DataFrame:
    """Image and text encoder at two sizes, the other at two, with and without distillation."""
    rows = [{"role": "teacher", "tr1": 80.0}]
    for swept, low in (("image", 10.0), ("text", 4.0)):
        for fixed in ("base", "small"):
            for role, gain in (("undistilled", 0.0), ("distilled", 20.0)):
                for size, m in (("base", 1.0), ("tiny", 0.05)):
                    m -= 0.02 * (fixed == "small") * (swept == "text")  # narrower keys and values of the picture
                    tr1 = 50.0 + gain - (low if size == "tiny" else 0) - (fixed == "small")
                    rows.append(dict(role=role, swept=swept, size=size, encoder_m=m, fixed=fixed, tr1=tr1, tr1_sd=0.5))
    return pd.DataFrame(rows)


def test_module_curves_hold_the_scores_of_the_frame(curves):
    fig = module_curves(curves)
    lines = {(trace.name, trace.xaxis): trace for trace in fig.data}
    assert len(fig.data) == len(lines) == 8
    line = lines["distilled, the other encoder small", "x2"]  # the text encoder's panel
    assert list(line.x) == pytest.approx([0.03, 0.98])
    assert (list(line.y), list(line.error_y.array)) == ([65.0, 69.0], [0.5, 0.5])
    assert (line.line.color, line.line.dash) == (COLOURS["distilled"], "dash")
    assert lines["undistilled, the other encoder base", "x"].line.dash == "solid"
    assert [trace.showlegend for trace in fig.data] == [True] * 4 + [False] * 4
    assert {shape.y0 for shape in fig.layout.shapes} == {80.0} and len(fig.layout.shapes) == 2
    assert fig.layout.xaxis.title.text == "image encoder (M parameters)" and fig.layout.yaxis.title.text == "TR@1 (%)"
    assert list(fig.layout.xaxis2.ticktext) == ["tiny<br>0.04", "base<br>0.99"]


def test_module_curves_say_what_the_smallest_lose(curves):
    title = module_curves(curves).layout.title.text.replace("<br>", " ")
    assert title == (
        "TR@1 of the smallest encoder less the largest: image encoder −10.0 undistilled, −10.0 distilled; "
        "text encoder −4.0 undistilled, −4.0 distilled"
    )
    part = curves.drop(curves[(curves["size"] == "tiny") & (curves["fixed"] == "small")].index)
    assert module_curves(part).layout.title.text == module_curves(curves).layout.title.text


def test_module_curves_leave_out_what_is_not_there(curves):
    fig = module_curves(curves[curves["swept"] != "text"].iloc[1:])
    assert len(fig.data) == 4 and not fig.layout.shapes and "text" not in fig.layout.title.text
    with pytest.raises(UserError, match="no run of the modules has tr1"):
        module_curves(curves.assign(tr1=np.nan))


# --- gains ------------------------------------------------------------------------------------------------------------


def test_of_many_points_those_on_the_front_keep_their_names():
    made = [make_record(f"s{i}", tr1=10.0 * i, params=1.0 + i) for i in range(9)] + [
        make_record("low", tr1=1, params=5)
    ]
    fig = accuracy_cost(frame(made))
    (points,) = fig.select_traces(dict(name="distilled"))
    named = {name for name, text in zip(points.customdata, points.text, strict=True) if text}
    assert "low" not in named and len(named) > 3


def test_error_bars_and_lines_close_together_have_room():
    made = [make_record("t", "teacher", tr1=90.0, params=4.0)]
    made += [make_record("s", seed=seed, tr1=tr1, params=1.0) for seed, tr1 in enumerate((5.0, 45.0, 85.0))]
    fig = accuracy_cost(frame(made))
    low, high = fig.layout.yaxis.range
    assert low < 45 - 40 and high > 90  # the standard deviation is 40
    assert {note.text: note.yanchor for note in fig.layout.annotations} == {"95% kept": "top", "99% kept": "bottom"}


def test_where_lines_of_a_role_are_many_they_are_thinned_and_lie_below():
    made = [make_record("alone", "undistilled")] + [make_record("taught", seed=seed) for seed in range(7)]
    fig = loss_curves(made, "lm")
    assert [trace.name for trace in fig.data] == ["distilled"] * 7 + ["undistilled"]
    assert [trace.opacity for trace in fig.data] == [0.4] * 7 + [0.9]


def test_bars_that_all_lose_say_so():
    df = pd.DataFrame(dict(name=["a-b", "c", "one seed"], role="distilled", gain=[-6.0, -9.0, 5.0],
                           low=[-8.0, -11.0, np.nan], high=[-4.0, -7.0, np.nan], paper=np.nan))  # fmt: skip
    said = gain_bars(df, "tr1").layout.title.text.replace("<br>", " ")
    assert said.startswith("TR@1 gains from no row; it loses least from a-b: −6.0 [−8.0, −4.0] over no distillation")


def test_module_curves_with_a_single_size_compare_none(curves):
    title = module_curves(curves[(curves["size"] != "tiny") | curves["swept"].isna()]).layout.title.text
    assert title == "TR@1 by the size of an encoder"


def test_score_rows_are_the_students_best_first_beside_the_teachers_line():
    made = [make_record("b", seed=seed, tr1=40.0 + seed) for seed in range(3)]
    made += [
        make_record("<a>", "undistilled", tr1=30.0),
        make_record("c", tr1=50.0),
        make_record("t", "teacher", tr1=80),
    ]
    fig = score_rows(frame(made), score="tr1")
    assert list(fig.layout.yaxis.categoryarray) == ["c", "b", "&lt;a&gt;"] and fig.layout.yaxis.autorange == "reversed"
    (points,) = fig.select_traces(dict(name="distilled"))
    assert (list(points.x), list(points.error_x.array)) == ([50.0, 41.0], [0.0, 1.0])
    assert (points.marker.color, list(points.customdata)) == (COLOURS["distilled"], ["c", "b"])
    assert fig.layout.shapes[0].x0 == 80 and fig.layout.shapes[0].line.color == COLOURS["teacher"]
    said = fig.layout.title.text.replace("<br>", " ")
    assert said == "At the same cost TR@1 is best for c (50.0) and lowest for &lt;a&gt; (30.0)"
    with pytest.raises(UserError, match="no student has both params_m and spice"):
        score_rows(frame(made), score="spice")


def test_gain_bars_hold_gains_and_intervals():
    df = pd.DataFrame(
        dict(name=["image", "fusion"], role="distilled", gain=[-0.5, 3.0], low=[-2.0, 1.0], high=[1.5, 4.0],
             paper=[1.4, np.nan])
    )  # fmt: skip
    fig = gain_bars(df, "ir1")
    bars = traces_by_name(fig)["distilled"]
    assert (list(bars.x), list(bars.y)) == ([-0.5, 3.0], ["image", "fusion"])
    assert (bars.marker.line.color, bars.marker.color) == (COLOURS["distilled"], "rgba(0, 158, 115, 0.3)")
    assert (list(bars.error_x.array), list(bars.error_x.arrayminus)) == ([2.0, 1.0], [1.5, 2.0])
    paper = traces_by_name(fig)["the paper's, on its data"]
    assert paper.x[0] == 1.4 and np.isnan(paper.x[1])
    assert fig.layout.xaxis.title.text == "gain in IR@1 over no distillation (percentage points)"
    title = fig.layout.title.text.replace("<br>", " ")
    assert (
        title
        == "IR@1 gains most from fusion: +3.0 [+1.0, +4.0] over no distillation; 1 of 2 gains has an interval above 0"
    )
    assert len(gain_bars(df.assign(paper=np.nan)).data) == 1
    with pytest.raises(UserError, match="no gains"):
        gain_bars(df.iloc[:0])


# --- disagreements ----------------------------------------------------------------------------------------------------


class Text(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_cards_show_picture_question_both_answers_and_the_truth():
    rows = pd.DataFrame([
        dict(image_id=7, asked="what <shape>?", teacher="a star", student="a <b>cross</b>", teacher_score=100.0,
             student_score=0.0, loss=100.0, measure="% accuracy"),
        dict(image_id=8, asked="", teacher="red star", student="red cross", teacher_score=120.0, student_score=30.0,
             loss=90.0, measure="% accuracy"),
    ])  # fmt: skip
    item = Item(
        np.zeros((48, 48, 3), np.uint8),
        7,
        ["a red star"],
        [Question("how many?", ["2"]), Question("what <shape>?", ["star", "sun"])],
    )
    page = Text(cards(rows, {7: item}, "undistilled", ("big", "small")))
    said = " ".join(" ".join(page.text).split())
    for part in ("what <shape>?", "big, 100 a star", "<b>cross</b>", "true: star, sun", "small, 30 red cross"):
        assert part in said
    assert "in % accuracy: 100 on the first" in said
    assert "b" not in {tag for tag, _ in page.tags}
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["src"].startswith("data:image/png") and image["alt"] == "a red star"
    colours = [attributes["style"] for tag, attributes in page.tags if attributes.get("class") == "side"]
    assert [c.split()[-1] for c in colours] == [COLOURS["teacher"], COLOURS["undistilled"]] * 2
    assert "loses on no item" in cards(rows.iloc[:0], {})
