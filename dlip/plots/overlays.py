"""Maps of several models over one picture, on one scale."""

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageChops, ImageFilter

from dlip.plots.html import data_uri
from dlip.plots.style import COLOURS, INK, figure

SMALL, LARGE = 288, 640
"""px: the longest side of a picture in a figure, a small one's pixels shown as squares."""
LINE = 5
"""px: square whose reach an outline keeps within its mask."""
MOVES = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale", "togglespikelines"]
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARES = ((126, 3, 168, 0), (126, 3, 168, 0.5), (204, 71, 120, 0.75), (248, 149, 64, 0.9), (240, 249, 33, 0.95))
"""RGBA at `PLACES` from nothing to the most: the colours of plasma, ever less of the picture."""
SIGNED = ((0, 90, 181, 0.95), (90, 150, 210, 0.6), (128, 128, 128, 0), (230, 150, 80, 0.6), (220, 90, 0, 0.95))
"""The same from what lowers a score (blue) to what raises it (orange)."""


def overlays(
    picture: Image.Image | np.ndarray,
    maps: Sequence[tuple[str, str, np.ndarray]],
    about: str,
    mask: np.ndarray | None = None,
    divergence: float | None = None,
    title: str | None = None,
    signed: bool | None = None,
) -> go.Figure:
    """The picture, and beside it each model's map over it in grey, all on one scale.

    picture: RGB, or uint8 [H, W, 3]. maps: (name, role, map [g, g]) of each model: shares, as of attention, or with
    negative values where attributions lower a score; each is shown in percent of its own sum, signs apart. about: the
    word that they are of. mask: bool [S, S], an object's, drawn as an outline and scored in the title. divergence: of
    two maps, in bits. signed: whether they are attributions; by default where a value is negative.
    """
    if signed is None:
        signed = any((np.asarray(values) < 0).any() for _, _, values in maps)
    maps = [(name, role, _percent(values)) for name, role, values in maps]
    top, stops = max(peak(values) for _, _, values in maps), SIGNED if signed else SHARES
    image, panels = _image(picture), 1 + len(maps)
    fig = figure(title or _finding(maps, about, mask, divergence, signed), panels)
    for column, (name, role, values) in enumerate([("the picture", None, None), *maps], 1):
        place = "" if column == 1 else column
        fig.add_layout_image(
            source=data_uri(image if values is None else _grey(image)), xref=f"x{place}", yref=f"y{place}", x=0, y=0,
            sizex=1, sizey=1, sizing="stretch", xanchor="left", yanchor="top", layer="below",
        )  # fmt: skip
        fig.add_annotation(
            text=f"<span style='color: {COLOURS[role]}'>■</span> {escape(name)}" if role else name, showarrow=False,
            xref=f"x{place} domain", yref=f"y{place} domain", x=0, y=1, xanchor="left", yanchor="bottom", yshift=4,
        )  # fmt: skip
        fig.update_xaxes(range=[0, 1], visible=False, constrain="domain", col=column)
        fig.update_yaxes(
            range=[1, 0], visible=False, constrain="domain", constraintoward="top", matches=None, col=column,
            scaleanchor=f"x{place}", scaleratio=image.height / image.width,
        )  # fmt: skip
        if values is None:
            fig.add_scatter(x=[0.5], y=[0.5], mode="markers", marker_opacity=0, hoverinfo="skip", row=1, col=1)
            continue
        rows, columns = values.shape
        fig.add_heatmap(
            z=values, x0=0.5 / columns, dx=1 / columns, y0=0.5 / rows, dy=1 / rows, row=1, col=column, name=name,
            coloraxis="coloraxis", hovertemplate=f"%{{z:.2f}}%<extra>{escape(name)}</extra>",
        )  # fmt: skip
        if mask is not None:
            side = (np.arange(len(mask)) + 0.5) / len(mask)
            fig.add_contour(
                z=np.asarray(mask, float), x=side, y=side, contours=dict(coloring="none", start=0.5, end=0.5),
                line=dict(color="#ffffff", width=2), hoverinfo="skip", showscale=False, row=1, col=column,
            )  # fmt: skip
    bar = dict(
        title=dict(text="% of what raises and lowers the score" if signed else "% of the attention", side="bottom"),
        orientation="h", thickness=10, len=0.5, x=1, xanchor="right", y=0, yanchor="top", ypad=4, outlinewidth=0,
        tickcolor=INK,
    )  # fmt: skip
    colours = [[at, "rgba({}, {}, {}, {})".format(*colour)] for at, colour in zip(PLACES, stops, strict=True)]
    return fig.update_layout(
        coloraxis=dict(colorscale=colours, cmin=-top if signed else 0, cmax=top, colorbar=bar), showlegend=False,
        dragmode=False, modebar=dict(orientation="h", remove=MOVES),
        height=int(165 + 800 / panels * image.height / image.width), margin=dict(l=8, r=8, t=88, b=56),
    )  # fmt: skip


def overlay(
    picture: Image.Image | np.ndarray,
    values: np.ndarray,
    top: float | None = None,
    mask: np.ndarray | None = None,
    signed: bool | None = None,
) -> Image.Image:
    """One map [g, g] over the picture, as in `overlays`, as a picture of its own.

    top: the percentage that counts as the most, so that several maps can share it; by default this map's `peak`. mask:
    bool [S, S], an object's, whose outline is drawn. signed: whether colours tell what lowers a score from what raises
    it; by default where this map has negative values.
    """
    image, values = _image(picture), _percent(values)
    signed = (values < 0).any() if signed is None else signed
    place = (values / (top or peak(values))).clip(-1, 1)
    place = (place + 1) / 2 if signed else place
    tint = np.stack(
        [np.interp(place, PLACES, channel) for channel in zip(*(SIGNED if signed else SHARES), strict=True)]
    )
    tint[3] *= 255
    veil = Image.fromarray(tint.transpose(1, 2, 0).round().astype(np.uint8))  # [g, g, RGBA]
    veil = veil.resize(image.size, Image.Resampling.NEAREST)
    shown = Image.alpha_composite(_grey(image).convert("RGBA"), veil).convert("RGB")
    if mask is not None:
        whole = Image.fromarray(255 * np.asarray(mask, np.uint8)).resize(image.size, Image.Resampling.NEAREST)
        shown.paste("white", mask=ImageChops.subtract(whole, whole.filter(ImageFilter.MinFilter(LINE))))
    return shown


def css_scale(signed: bool = False) -> str:
    """The colours from the least to the most, over the grey of a picture, as a background in CSS."""
    stops = (f"rgba{colour} {100 * at:.0f}%" for at, colour in zip(PLACES, SIGNED if signed else SHARES, strict=True))
    return f"linear-gradient(90deg, {', '.join(stops)}) #555"


def _percent(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    return 100 * values / (np.abs(values).sum() or 1.0)


def peak(values: np.ndarray) -> float:
    """The percentage of a map that counts as the most: of many pixels of which few stand out, what 99% stay below."""
    size = np.abs(_percent(values))
    return float(np.quantile(size, 0.99) if (values < 0).any() else size.max()) or 1.0


def _image(picture: Image.Image | np.ndarray) -> Image.Image:
    image = (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).convert("RGB")
    longest = max(image.size)
    if longest < SMALL:
        times = -(-SMALL // longest)
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image = image.copy()
    image.thumbnail((LARGE, LARGE))
    return image


def _grey(image: Image.Image) -> Image.Image:
    """The picture without its colours, and darker, so that those of a map stand out."""
    return image.convert("L").point(lambda tone: 24 + 0.5 * tone).convert("RGB")


def _finding(maps: list, about: str, mask: np.ndarray | None, divergence: float | None, signed: bool) -> str:
    """How much of each map lies on the object, and how far the maps differ."""
    parts = []
    if mask is not None:
        whole = np.asarray(mask, float)
        shares = []
        for name, _, values in maps:
            raised = Image.fromarray(values.clip(min=0).astype(np.float32))
            over = np.asarray(raised.resize(whole.shape[::-1], Image.Resampling.NEAREST))
            shares.append(f"{100 * (over * whole).sum() / over.sum():.0f}% of the {name}'s")
        parts.append(f"{' and '.join(shares)} {'score comes from it' if signed else 'attention lies on it'}")
    if divergence is not None:
        parts.append(f"the maps differ by {divergence:.2f} of 1 bit")
    return f"“{escape(about)}”" + (": " + "; ".join(parts)) * bool(parts)
