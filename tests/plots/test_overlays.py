"""Maps over pictures: one scale, the mask scored, clear where nothing is."""

import numpy as np
from PIL import Image

from dlip.plots import (
    COLOURS,
    css_scale,
    overlay,
    overlays,
    peak,
)

OVER = np.array([[0.1, 0.2], [0.3, 0.4]])
PICTURE = np.zeros((48, 48, 3), np.uint8)


def test_overlays_share_one_scale_and_score_the_mask():
    mask = np.zeros((48, 48), bool)
    mask[24:, 24:] = True
    sharp = np.array([[0.0, 0.0], [0.0, 1.0]])
    maps = [("big", "teacher", OVER), ("small", "distilled", sharp)]
    fig = overlays(PICTURE, maps, "a <star>", mask, 0.25)
    heat = [trace for trace in fig.data if trace.type == "heatmap"]
    np.testing.assert_allclose(heat[0].z, 100 * OVER)
    np.testing.assert_allclose(heat[1].z, 100 * sharp)
    assert {trace.coloraxis for trace in heat} == {"coloraxis"} and fig.layout.coloraxis.cmax == 100.0
    assert (heat[0].x0, heat[0].dx, heat[0].y0, heat[0].dy) == (0.25, 0.5, 0.25, 0.5)  # patches of a unit square
    assert len(fig.layout.images) == 3 and len([t for t in fig.data if t.type == "contour"]) == 2
    title = fig.layout.title.text.replace("<br>", " ")
    assert title == (
        "“a &lt;star&gt;”: 40% of the big's and 100% of the small's attention lies on it; "
        "the maps differ by 0.25 of 1 bit"
    )
    names = [note.text for note in fig.layout.annotations]
    assert COLOURS["teacher"] in names[1] and "big" in names[1] and COLOURS["distilled"] in names[2]


def test_signed_overlays_are_of_the_whole_effect_and_even_about_nought():
    signed = np.array([[3.0, -1.0], [0.0, 0.0]])
    fig = overlays(Image.fromarray(PICTURE), [("m", "teacher", signed)], "x")
    np.testing.assert_allclose(fig.data[-1].z, 25 * signed)
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax
    assert "raises and lowers" in fig.layout.coloraxis.colorbar.title.text


def test_an_overlay_is_clear_where_nothing_is_and_bright_where_most_is():
    shown = np.asarray(overlay(PICTURE + 100, np.array([[0.0, 0.0], [0.0, 1.0]])))
    assert shown.shape == (288, 288, 3)
    grey, bright = shown[0, 0], shown[-1, -1]
    assert len(set(grey.tolist())) == 1 and bright[0] > 200 and bright[2] < 80  # yellow
    half = np.asarray(overlay(PICTURE, np.array([[0.0, 1.0]]), top=200.0))
    assert (half[0, -1] != np.asarray(overlay(PICTURE, np.array([[0.0, 1.0]])))[0, -1]).any()
    large = overlay(Image.new("RGB", (2000, 1000)), OVER)
    assert large.size == (640, 320)
    rises = np.asarray(overlay(PICTURE, np.array([[0.0, 1.0]]), signed=True))[0]
    assert len(set(rises[0].tolist())) == 1 and rises[-1, 0] > 200 and rises[-1, 2] < 30  # orange


def test_an_outline_lies_inside_its_mask():
    mask = np.zeros((48, 48), bool)
    mask[12:36, 12:36] = True
    plain, outlined = (np.asarray(overlay(PICTURE, OVER, mask=some)) for some in (None, mask))
    changed = (plain != outlined).any(-1)
    whole = np.kron(mask, np.ones((6, 6), bool))
    assert not changed[~whole].any() and (outlined[changed] == 255).all()
    assert changed[72, 72:216].all() and changed[144, 72] and changed[144, 215] and not changed[144, 144]
    assert changed.sum() == 144**2 - 140**2  # two pixels wide


def test_the_scale_has_the_colours_of_maps():
    assert css_scale().startswith("linear-gradient(90deg, rgba(126, 3, 168, 0) 0%") and "#555" in css_scale()
    assert css_scale(True).count("rgba") == 5 and "rgba(220, 90, 0, 0.95) 100%" in css_scale(True)
    assert peak(np.array([1.0, 3.0])) == 75.0
