"""Score against cost: points, names, front, titles."""

import random
import re

import numpy as np
import pytest

from dlip.common.errors import UserError
from dlip.plots import COLORS, LABELS, accuracy_cost, pareto, score_rows, style
from dlip.records import frame
from dlip.records.schema import COSTS, FIGURES, SCORES
from tests.helpers import make_record
from tests.plots.helpers import numbers_of, title_of, traces_by_name


@pytest.fixture
def records() -> list[dict]:
    students = [
        make_record(role, role=role, seed=seed, tr1=tr1 + seed, params=1.0, latency=20.0 + seed)
        for role, tr1 in (("undistilled", 60.0), ("distilled", 76.0)) for seed in range(3)
    ]  # fmt: skip
    return [make_record("teacher", role="teacher", tr1=80.0, params=4.0, latency=50.0), *students]


@pytest.mark.parametrize("seed", range(20))
def test_pareto_front_matches_brute_force(seed: int):
    rng = random.Random(seed)
    points = [(rng.randint(0, 6), rng.randint(0, 6)) for _ in range(25)]  # with ties and equals
    points[3] = (float("nan"), 6)

    def beaten(i: int) -> bool:
        cost, score = points[i]
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    front = pareto(*map(list, zip(*points, strict=True)))
    assert sorted(front) == [i for i in range(25) if i != 3 and not beaten(i)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_pareto_front_of_no_points():
    assert pareto([], []) == [] and pareto([1.0], [float("nan")]) == []


def test_means_and_spread_in_role_colors(records: list[dict]):
    traces = traces_by_name(accuracy_cost(frame(records), "latency_ms", "tr1"))
    for role in ("teacher", "undistilled", "distilled"):
        assert traces[role].marker.color == COLORS[role]
    assert (traces["distilled"].x[0], traces["distilled"].y[0]) == (21.0, 77.0)
    assert (traces["distilled"].error_x.array[0], traces["distilled"].error_y.array[0]) == (1.0, 1.0)
    assert traces["teacher"].error_y.array[0] == 0.0
    assert list(traces["distilled"].customdata) == ["distilled"]  # what a click on the point names
    assert len(set(COLORS.values())) == len(COLORS)


def test_no_point_hides_another_of_its_cost(records: list[dict]):
    """A quantized teacher has as many parameters as the teacher, whose diamond is larger than its triangle."""
    fig = accuracy_cost(frame([*records, make_record("int8", "quantized", tr1=79.9, params=4.0)]), "params_m", "tr1")
    assert [trace.name for trace in fig.data][-2:] == ["teacher", "quantized"]  # the last one is on top


def test_line_joins_pareto_optimal_models(records: list[dict]):
    front = traces_by_name(accuracy_cost(frame(records), "params_m", "tr1"))["best at this cost"]
    assert list(zip(front.x, front.y, strict=True)) == [(1.0, 77.0), (4.0, 80.0)] and front.showlegend
    alone = traces_by_name(accuracy_cost(frame(records[:1]), "params_m", "tr1"))["best at this cost"]
    assert not alone.showlegend  # there is no line


def test_lines_at_kept_percentages(records: list[dict]):
    fig = accuracy_cost(frame(records), "params_m", "tr1")
    assert [line.y0 for line in fig.layout.shapes] == pytest.approx([76.0, 79.2])
    assert [note.text for note in fig.layout.annotations] == ["95% kept", "99% kept"]


def test_names_of_points_do_not_overlap():
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


def test_baselines_keep_their_names_among_many_students():
    """Off the front, as students that are cut from the teacher."""
    made = [make_record(f"s{i}", params=0.2 + 0.1 * i, tr1=90.0 - 5 * i) for i in range(9)]
    made.append(make_record("cut", role="undistilled", params=1.1, tr1=80.0))
    texts = {trace.name: [*trace.text] for trace in accuracy_cost(frame(made)).data[1:]}
    assert texts["undistilled"] == ["cut"] and {*texts["distilled"]} == {"", "s0"}  # s0 is on the front


def test_name_without_room_is_in_the_hover_text():
    made = [make_record(f"one-of-many-students-{i}", params=0.62) for i in range(8)]
    (points,) = [trace for trace in accuracy_cost(frame(made)).data if trace.name == "distilled"]
    assert 1 <= sum(map(bool, points.text)) < 8
    assert all(name in text for name, text in zip(points.customdata, points.hovertext, strict=True))


def test_title_and_units(records: list[dict]):
    fig = accuracy_cost(frame(records), "params_m", "tr1")
    assert numbers_of(fig) == ["96.2%", "25%", "76.2%"]  # kept, of the parameters, kept by the twin
    assert "TR@1" in title_of(fig) and "parameters" in title_of(fig)
    assert fig.layout.xaxis.title.text == "parameters (M)" and fig.layout.yaxis.title.text == "TR@1 (%)"
    other = [r | {"train_images": 9} if r["role"] == "undistilled" else r for r in records]
    assert numbers_of(accuracy_cost(frame(other), "params_m", "tr1")) == ["96.2%", "25%"]  # no twin
    students = [r for r in records if r["role"] != "teacher"]
    assert numbers_of(accuracy_cost(frame(students))) == []


def test_title_says_when_there_is_one_seed(records: list[dict]):
    assert "seed" not in title_of(accuracy_cost(frame(records)))
    assert title_of(accuracy_cost(frame([r for r in records if r["seed"] == 0]))).endswith("(one seed)")


def test_title_names_the_student_among_several(records: list[dict]):
    better = make_record("b", tr1=78.0, params=1.0)
    larger = make_record("c", tr1=80.0, params=2.0)
    fig = accuracy_cost(frame([*records, better, larger]))
    assert 'student "b" ' in title_of(fig) and numbers_of(fig)[:2] == ["97.5%", "25%"]


def test_title_names_the_best_student_if_none_keeps_enough(records: list[dict]):
    few = [r for r in records if r["role"] != "distilled"]
    low = [make_record("cheap", tr1=40.0, params=0.5), make_record("dear", tr1=70.0, params=2.0)]
    fig = accuracy_cost(frame([*few, *low]))
    assert 'student "dear" ' in title_of(fig) and numbers_of(fig)[:2] == ["87.5%", "50%"]


def test_hover_text_is_escaped():
    record = make_record("<i>x</i>", command="dlip train --out '<b>'")
    points = traces_by_name(accuracy_cost(frame([record])))["distilled"]
    assert points.text[0] == "&lt;i&gt;x&lt;/i&gt;"
    for part in ("<b>&lt;i&gt;x&lt;/i&gt;</b> (distilled, 1 seed)", "image 64 x 4", "--out", "&lt;b&gt;"):
        assert part in points.hovertext[0]


def test_wrong_axes_and_mixed_test_sets_are_refused(records: list[dict]):
    df = frame(records)
    for axes, fault in ((("tr1", "ir1"), "'tr1' cannot be an axis"), (("params_m", "wall_s"), "'wall_s' cannot"),
                        (("params_m", "spice"), "no record has both")):  # fmt: skip
        with pytest.raises(UserError, match=fault):
            accuracy_cost(df, *axes)
    with pytest.raises(UserError, match="the records are of scenes test; other test; keep"):
        accuracy_cost(frame([*records, make_record(data="other")]))


def test_every_cost_and_score_can_be_an_axis():
    df = frame([make_record("t", role="teacher"), make_record("s")])
    df[FIGURES] = np.repeat([[2.0], [1.0]], len(FIGURES), axis=1)
    axes = [*((cost, "tr1") for cost in COSTS), *(("params_m", score) for score in SCORES)]
    for cost, score in axes:
        layout = accuracy_cost(df, cost, score).layout
        assert (layout.xaxis.title.text, layout.yaxis.title.text) == tuple(
            "{} ({})".format(*LABELS[c]) for c in (cost, score)
        )


def test_only_front_is_named_among_many_points():
    made = [make_record(f"s{i}", tr1=10.0 * i, params=1.0 + i) for i in range(9)] + [
        make_record("low", tr1=1, params=5)
    ]
    fig = accuracy_cost(frame(made))
    (points,) = fig.select_traces(dict(name="distilled"))
    named = {name for name, text in zip(points.customdata, points.text, strict=True) if text}
    assert "low" not in named and len(named) > 3


def test_axis_has_room_for_error_bars_and_lines():
    made = [make_record("t", "teacher", tr1=90.0, params=4.0)]
    made += [make_record("s", seed=seed, tr1=tr1, params=1.0) for seed, tr1 in enumerate((5.0, 45.0, 85.0))]
    fig = accuracy_cost(frame(made))
    low, high = fig.layout.yaxis.range
    assert low < 45 - 40 and high > 90  # the standard deviation is 40
    assert {note.text: note.yanchor for note in fig.layout.annotations} == {"95% kept": "top", "99% kept": "bottom"}


def test_score_rows_are_sorted_beside_the_teacher():
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
    assert (points.marker.color, list(points.customdata)) == (COLORS["distilled"], ["c", "b"])
    assert fig.layout.shapes[0].x0 == 80 and fig.layout.shapes[0].line.color == COLORS["teacher"]
    assert re.search(r"\bc \(50\.0\).* &lt;a&gt; \(30\.0\)", title_of(fig))  # the best and the last
    fig = score_rows(frame([*made[:3], made[4]]), score="tr1")
    assert re.search(r"\bc \(50\.0\).* b \(41\.0 ±1\.0\)", title_of(fig))
    with pytest.raises(UserError, match="no student has both params_m and spice"):
        score_rows(frame(made), score="spice")


def test_titles_break_at_spaces_only():
    title = style.figure("as few of the multiply-accumulates " * 4).layout.title.text
    assert "multiply-<br>" not in title and "<br>" in title


def test_labels_are_unique():
    assert len({name for name, _ in LABELS.values()}) == len(LABELS)


def test_two_teachers_are_refused(records: list[dict]):
    with pytest.raises(UserError, match="the records have the teachers .*; keep those of one of them"):
        accuracy_cost(frame([*records, make_record("another", "teacher", tr1=90.0)]))
