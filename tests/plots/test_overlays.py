"""Maps over images: one scale, the mask scored, transparent where the map is zero."""

import numpy as np
from PIL import Image

from dlip.plots import COLORS, css_scale, overlay, overlays, peak
from tests.plots.helpers import numbers_of, title_of

MAP = np.array([[0.1, 0.2], [0.3, 0.4]])
IMAGE = np.zeros((48, 48, 3), np.uint8)


def test_overlays_share_one_scale_and_score_the_mask():
    mask = np.zeros((48, 48), bool)
    mask[24:, 24:] = True
    sharp = np.array([[0.0, 0.0], [0.0, 1.0]])
    maps = [("big", "teacher", MAP), ("small", "distilled", sharp)]
    fig = overlays(IMAGE, maps, "a <star>", mask, 0.25)
    heat = [trace for trace in fig.data if trace.type == "heatmap"]
    np.testing.assert_allclose(heat[0].z, 4 * MAP)
    np.testing.assert_allclose(heat[1].z, 4 * sharp)
    assert {trace.coloraxis for trace in heat} == {"coloraxis"} and fig.layout.coloraxis.cmax == 4.0
    assert (heat[0].x0, heat[0].dx, heat[0].y0, heat[0].dy) == (0.25, 0.5, 0.25, 0.5)  # patches of a unit square
    assert len(fig.layout.images) == 3 and len([t for t in fig.data if t.type == "contour"]) == 2
    assert "a &lt;star&gt;" in title_of(fig) and numbers_of(fig) == ["40%", "100%", "0.25", "1"]
    names = [note.text for note in fig.layout.annotations]
    assert COLORS["teacher"] in names[1] and "big" in names[1] and COLORS["distilled"] in names[2]


def test_signed_overlays_have_a_symmetric_scale():
    signed = np.array([[3.0, -1.0], [0.0, 0.0]])
    fig = overlays(Image.fromarray(IMAGE), [("m", "teacher", signed)], "x", signed=True)
    np.testing.assert_allclose(fig.data[-1].z, signed)
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax
    assert "effect on the score" in fig.layout.coloraxis.colorbar.title.text


def test_overlay_is_gray_at_zero_and_bright_at_the_maximum():
    shown = np.asarray(overlay(IMAGE + 100, np.array([[0.0, 0.0], [0.0, 1.0]]), 4.0, None, False))
    assert shown.shape == (288, 288, 3)
    gray, bright = shown[0, 0], shown[-1, -1]
    assert len(set(gray.tolist())) == 1 and bright[0] > 200 and bright[2] < 80  # yellow
    half = np.asarray(overlay(IMAGE, np.array([[0.0, 1.0]]), 4.0, None, False))
    assert (half[0, -1] != np.asarray(overlay(IMAGE, np.array([[0.0, 1.0]]), 2.0, None, False))[0, -1]).any()
    fine = overlay(IMAGE, np.kron(np.array([[0.0, 1.0]]), np.ones((3, 3))), 4.0, None, False)
    assert (np.asarray(fine) == half).all()  # a finer grid of the same attention has the same colors
    large = overlay(Image.new("RGB", (2000, 1000)), MAP, 4.0, None, False)
    assert large.size == (640, 320)
    rises = np.asarray(overlay(IMAGE, np.array([[0.0, 1.0]]), 2.0, None, True))[0]
    assert len(set(rises[0].tolist())) == 1 and rises[-1, 0] > 200 and rises[-1, 2] < 30  # orange


def test_outline_is_inside_its_mask():
    mask = np.zeros((48, 48), bool)
    mask[12:36, 12:36] = True
    plain, outlined = (np.asarray(overlay(IMAGE, MAP, 4.0, some, False)) for some in (None, mask))
    changed = (plain != outlined).any(-1)
    area = np.kron(mask, np.ones((6, 6), bool))
    assert not changed[~area].any() and (outlined[changed] == 255).all()
    assert changed[72, 72:216].all() and changed[144, 72] and changed[144, 215] and not changed[144, 144]
    assert changed.sum() == 144**2 - 140**2  # two pixels wide


def test_css_scale_has_the_colors_of_maps():
    assert css_scale(False).startswith("linear-gradient(90deg, rgba(126, 3, 168, 0) 0%") and "#555" in css_scale(False)
    assert css_scale(True).count("rgba") == 5 and "rgba(220, 90, 0, 0.95) 100%" in css_scale(True)
    assert peak(np.array([1.0, 3.0])) == 1.5
