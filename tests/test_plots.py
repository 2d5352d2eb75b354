"""Figures show what the records say, in the colours of their roles."""

import random

import numpy as np
import plotly.graph_objects as go
import pytest
from test_records import make_record

from dlip.errors import UserError
from dlip.plots import COLOURS, LABELS, accuracy_cost, loss_curves, pareto, terms
from dlip.records import COSTS, NUMBERS, ROLES, SCORES, frame


def by_name(fig: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in fig.data}


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
    traces = by_name(accuracy_cost(frame(records), "latency_ms", "tr1"))
    for role in ROLES:
        assert traces[role].marker.color == COLOURS[role]
    assert (traces["distilled"].x[0], traces["distilled"].y[0]) == (21.0, 77.0)
    assert (traces["distilled"].error_x.array[0], traces["distilled"].error_y.array[0]) == (1.0, 1.0)
    assert traces["teacher"].error_y.array[0] == 0.0
    assert len(set(COLOURS.values())) == 3


def test_accuracy_cost_joins_the_models_that_none_beats(records: list[dict]):
    front = by_name(accuracy_cost(frame(records), "params_m", "tr1"))["none better at this cost"]
    assert list(zip(front.x, front.y, strict=True)) == [(1.0, 77.0), (4.0, 80.0)]


def test_accuracy_cost_marks_what_is_kept(records: list[dict]):
    fig = accuracy_cost(frame(records), "params_m", "tr1")
    assert [line.y0 for line in fig.layout.shapes] == pytest.approx([76.0, 79.2])
    assert [note.text for note in fig.layout.annotations] == ["95% kept", "99% kept"]


def test_accuracy_cost_says_its_finding_and_units(records: list[dict]):
    fig = accuracy_cost(frame(records), "params_m", "tr1")
    title = fig.layout.title.text.replace("<br>", " ")
    assert title == "Distilled keeps 96.2% of TR@1 with 25% of the parameters; undistilled 76.2%"
    assert fig.layout.xaxis.title.text == "parameters (M)" and fig.layout.yaxis.title.text == "TR@1 (%)"
    assert accuracy_cost(frame(records), title="Mine").layout.title.text == "Mine"
    students = [r for r in records if r["role"] != "teacher"]
    assert accuracy_cost(frame(students)).layout.title.text == "TR@1 against parameters"


def test_accuracy_cost_names_the_student_among_several(records: list[dict]):
    better = make_record("b", tr1=78.0, params=1.0)
    larger = make_record("c", tr1=80.0, params=2.0)
    title = accuracy_cost(frame([*records, better, larger])).layout.title.text
    assert title.startswith("b keeps 97.5% of TR@1 with 25%")


def test_hover_tells_configuration_and_command_and_escapes_them():
    record = make_record("<i>x</i>", command="dlip train --out '<b>'")
    points = by_name(accuracy_cost(frame([record])))["distilled"]
    assert points.text[0] == "&lt;i&gt;x&lt;/i&gt;"
    for part in ("<b>&lt;i&gt;x&lt;/i&gt;</b> (distilled, 1 seed)", "image 64 x 4", "--out", "&lt;b&gt;"):
        assert part in points.hovertext[0]


def test_wrong_axes_and_mixed_data_are_named(records: list[dict]):
    df = frame(records)
    for axes, fault in ((("tr1", "ir1"), "'tr1' cannot be an axis"), (("params_m", "wall_s"), "'wall_s' cannot"),
                        (("params_m", "spice"), "no record has both")):  # fmt: skip
        with pytest.raises(UserError, match=fault):
            accuracy_cost(df, *axes)
    with pytest.raises(UserError, match="several data sets"):
        accuracy_cost(frame([*records, make_record(data="other")]))


def test_every_cost_and_score_can_be_an_axis_and_has_a_unit():
    df = frame([make_record("t", role="teacher"), make_record("s")])
    df[NUMBERS] = np.repeat([[2.0], [1.0]], len(NUMBERS), axis=1)
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
