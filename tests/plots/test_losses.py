"""Loss curves over runs and by term."""

import pytest

from dlip.common.errors import UserError
from dlip.losses import TERMS
from dlip.plots import COLORS, loss_curves, term_curves, terms
from dlip.plots.losses import SHADES
from dlip.records.schema import ROLES
from tests.helpers import make_record
from tests.plots.helpers import numbers_of, title_of


def test_loss_curves_have_a_line_per_run():
    curve = {"step": [10, 20], "lm": [3.0, 1.0], "total": [3.0, 1.0]}
    records = [make_record(role, role=role, seed=seed, losses=curve) for role in ROLES[:3] for seed in range(2)]
    fig = loss_curves([*records, make_record("other", losses={"step": [1], "itc": [1.0]})], "lm")
    assert [trace.line.color for trace in fig.data] == [COLORS[role] for role in ROLES[:3] for _ in range(2)]
    assert [trace.showlegend for trace in fig.data] == [True, False] * 3
    assert (list(fig.data[0].x), list(fig.data[0].y)) == ([10, 20], [3.0, 1.0])
    assert (fig.layout.xaxis.title.text, fig.layout.yaxis.title.text) == ("step", "nats")
    assert numbers_of(fig) == ["1.00"] * 3 and all(role in title_of(fig) for role in ROLES[:3])


def test_title_has_the_mean_of_the_last_tenth():
    def losses(end: float) -> dict:
        return {"step": list(range(20)), "lm": [9.0] * 18 + [end - 1, end + 1]}

    seeds = [make_record("a", seed=seed, losses=losses(end)) for seed, end in enumerate((2.0, 4.0))]
    assert numbers_of(loss_curves(seeds, "lm")) == ["3.00"]
    other = make_record("b", losses=losses(5.0))
    assert numbers_of(loss_curves([*seeds, other], "lm")) == ["3.00", "5.00"]


def test_terms_of_records():
    records = [make_record()]
    assert terms([*records, make_record(losses={"step": [1], "kd.lm": [1.0], "lm": [1.0]})]) == ["lm", "kd.lm"]
    with pytest.raises(UserError, match="no record has losses of 'itc'; choose one of lm"):
        loss_curves(records, "itc")


def test_many_lines_of_a_role_are_faint_and_below():
    made = [make_record("alone", "undistilled")] + [make_record("many", seed=seed) for seed in range(7)]
    fig = loss_curves(made, "lm")
    assert [trace.name for trace in fig.data] == ["distilled"] * 7 + ["undistilled"]
    assert [trace.opacity for trace in fig.data] == [0.4] * 7 + [0.9]


def test_term_curves_have_a_panel_per_group():
    losses = {"step": [10, 20], "itc": [4.0, 2.0], "lm": [3.0, 1.0], "hr.image": [0.9, 0.5], "total": [7.9, 3.5]}
    fig = term_curves(losses, 100)
    assert [(trace.name, trace.xaxis) for trace in fig.data] == [("itc", "x"), ("lm", "x"), ("hr.image", "x2")]
    assert list(fig.data[1].y) == [3.0, 1.0] and list(fig.data[1].x) == [10, 20]
    assert [trace.line.color for trace in fig.data] == [SHADES[0], SHADES[1], SHADES[0]]
    assert fig.layout.xaxis2.range == (0, 100) and fig.layout.xaxis.domain[1] < fig.layout.xaxis2.domain[0]
    heads = [note.text for note in fig.layout.annotations]
    assert "(nats)" in heads[0] and "(1 − cosine)" in heads[1] and "image" in heads[1]
    assert "fallen" in title_of(fig) and numbers_of(fig)[-2:] == ["7.90", "3.50"]


def test_every_term_has_a_line():
    fig = term_curves({"step": [1, 2], **dict.fromkeys(TERMS, [2.0, 1.0]), "total": [9.0, 8.0]})
    assert {trace.name for trace in fig.data} == set(TERMS)
    assert len({(trace.xaxis, trace.line.color) for trace in fig.data}) == len(TERMS)


def test_term_curves_titles():
    fig = term_curves({"step": [1, 2], "itc": [1, 2], "total": [1, 2]})
    assert "risen" in title_of(fig) and numbers_of(fig)[-2:] == ["1.00", "2.00"]
    joins = {"step": [1, 2, 3], "itc": [1.0, 0.5, 0.4], "lm": [None, 3.0, 2.0], "total": [1.0, 3.5, 2.4]}
    assert numbers_of(term_curves(joins))[-3:] == ["3.50", "2.40", "2"]  # since step 2, where all terms joined
    assert title_of(term_curves({}, 5)) and not term_curves({}, 5).data


def test_no_term_has_the_color_of_a_role():
    assert not set(SHADES) & set(COLORS.values())
