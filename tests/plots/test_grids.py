"""Figures of ablation grids."""

import numpy as np
import pandas as pd
import pytest

from dlip.common.errors import UserError
from dlip.plots import COLORS, data_curves, gain_bars, module_curves
from dlip.records import frame
from tests.helpers import make_record
from tests.plots.helpers import numbers_of, title_of, traces_by_name


@pytest.fixture
def curves() -> pd.DataFrame:
    """Image and text encoder at two sizes, the other at two, with and without distillation."""
    rows = [{"role": "teacher", "tr1": 80.0}]
    for swept, low in (("image", 10.0), ("text", 4.0)):
        for fixed in ("base", "small"):
            for role, gain in (("undistilled", 0.0), ("distilled", 20.0)):
                for size, m in (("base", 1.0), ("tiny", 0.05)):
                    m -= 0.02 * (fixed == "small") * (swept == "text")  # narrower keys and values of the image
                    tr1 = 50.0 + gain - (low if size == "tiny" else 0) - (fixed == "small")
                    rows.append(dict(role=role, swept=swept, size=size, encoder_m=m, fixed=fixed, tr1=tr1, tr1_sd=0.5))
    return pd.DataFrame(rows)


def test_module_curves_plot_the_scores(curves):
    fig = module_curves(curves)
    lines = {(trace.name, trace.xaxis): trace for trace in fig.data}
    assert len(fig.data) == len(lines) == 8
    line = lines["distilled, the other encoder small", "x2"]  # the text encoder's panel
    assert list(line.x) == pytest.approx([0.03, 0.98])
    assert (list(line.y), list(line.error_y.array)) == ([65.0, 69.0], [0.5, 0.5])
    assert (line.line.color, line.line.dash) == (COLORS["distilled"], "dash")
    assert lines["undistilled, the other encoder base", "x"].line.dash == "solid"
    assert [trace.showlegend for trace in fig.data] == [True] * 4 + [False] * 4
    assert {shape.y0 for shape in fig.layout.shapes} == {80.0} and len(fig.layout.shapes) == 2
    assert fig.layout.xaxis.title.text == "image encoder (M parameters)" and fig.layout.yaxis.title.text == "TR@1 (%)"
    assert list(fig.layout.xaxis2.ticktext) == ["tiny<br>0.04", "base<br>0.99"]


def test_module_curves_title_compares_smallest_and_largest(curves):
    assert numbers_of(module_curves(curves)) == ["−10.0", "−10.0", "−4.0", "−4.0"]  # image, then text
    part = curves.drop(curves[(curves["size"] == "tiny") & (curves["fixed"] == "small")].index)
    assert module_curves(part).layout.title.text == module_curves(curves).layout.title.text


def test_module_curves_without_some_rows(curves):
    fig = module_curves(curves[curves["swept"] != "text"].iloc[1:])
    assert len(fig.data) == 4 and not fig.layout.shapes and "text" not in fig.layout.title.text
    with pytest.raises(UserError, match="no run of the grid modules has tr1"):
        module_curves(curves.assign(tr1=np.nan))


def test_gain_bars_title_without_gains():
    df = pd.DataFrame(dict(name=["a-b", "c", "one seed"], role="distilled", gain=[-6.0, -9.0, 5.0],
                           low=[-8.0, -11.0, np.nan], high=[-4.0, -7.0, np.nan], paper=np.nan))  # fmt: skip
    fig = gain_bars(df, "tr1")
    assert "a-b" in title_of(fig) and numbers_of(fig)[:3] == ["−6.0", "−8.0", "−4.0"]


def test_module_curves_with_a_single_size(curves):
    assert not numbers_of(module_curves(curves[(curves["size"] != "tiny") | curves["swept"].isna()]))


def test_gain_bars_plot_gains_and_intervals():
    df = pd.DataFrame(
        dict(name=["image", "fusion"], role="distilled", gain=[-0.5, 3.0], low=[-2.0, 1.0], high=[1.5, 4.0],
             paper=[1.4, np.nan])
    )  # fmt: skip
    fig = gain_bars(df, "ir1")
    bars = traces_by_name(fig)["distilled"]
    assert (list(bars.x), list(bars.y)) == ([-0.5, 3.0], ["image", "fusion"])
    assert (bars.marker.line.color, bars.marker.color) == (COLORS["distilled"], "rgba(0, 158, 115, 0.3)")
    assert (list(bars.error_x.array), list(bars.error_x.arrayminus)) == ([2.0, 1.0], [1.5, 2.0])
    paper = traces_by_name(fig)["the paper, on its data"]
    assert paper.x[0] == 1.4 and np.isnan(paper.x[1])
    assert fig.layout.xaxis.title.text == "gain in IR@1 over no distillation (percentage points)"
    assert "fusion" in title_of(fig) and numbers_of(fig) == ["+3.0", "+1.0", "+4.0", "1", "2", "0"]  # 1 of 2 above 0
    assert len(gain_bars(df.assign(paper=np.nan)).data) == 1
    assert numbers_of(gain_bars(df.assign(low=np.nan, high=np.nan), "ir1")) == ["+3.0"]  # no interval
    with pytest.raises(UserError, match="no gains"):
        gain_bars(df.iloc[:0])


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


def test_data_curves_are_means_over_seeds():
    fig = data_curves(runs(), "tr1")
    lines = {trace.name: trace for trace in fig.data}
    assert set(lines) == {"undistilled", "distilled"}
    assert list(lines["distilled"].x) == [250, 4000] and list(lines["distilled"].y) == [31.0, 60.0]
    assert list(lines["distilled"].error_y.array) == [1.0, 1.0]
    assert lines["undistilled"].line.color == COLORS["undistilled"]
    assert numbers_of(fig) == ["250", "+20.0", "4,000", "−1.0"]  # where distillation adds most and least
    few = runs()
    assert numbers_of(data_curves(few[few["train_images"] == 4000], "tr1")) == ["4,000", "−1.0"]


def test_data_curves_without_runs():
    with pytest.raises(UserError, match="no run of the grid data has tr1"):
        data_curves(frame([]), "tr1")


def test_module_curves_have_one_tick_per_size():
    about = dict(role="distilled", swept="text", tr1=50.0, tr1_sd=0.5)
    rows = [("tiny", 0.09, "small"), ("tiny", 0.11, "base"), ("base", 1.5, "small"), ("base", 1.7, "base")]
    fig = module_curves(pd.DataFrame([dict(about, size=s, encoder_m=m, fixed=f) for s, m, f in rows]))
    assert list(fig.layout.xaxis.ticktext) == ["tiny<br>0.1", "base<br>1.6"]
