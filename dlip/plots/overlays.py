"""Attention and attribution maps over an image, those of several models on one scale."""

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageChops, ImageFilter

from dlip.data.transforms import as_pil
from dlip.plots.html import PIXEL_ART_SIDE, data_uri
from dlip.plots.style import COLORS, INK, figure

SMALL, LARGE = 288, 640
"""px: range of the longest side of an image in a figure; images up to `PIXEL_ART_SIDE` keep square pixels."""
OUTLINE = 5
"""px: size of the filter that draws an outline, half of it inside the mask."""
ZOOM_BUTTONS = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale", "togglespikelines"]
STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARES = ((126, 3, 168, 0), (126, 3, 168, 0.5), (204, 71, 120, 0.75), (248, 149, 64, 0.9), (240, 249, 33, 0.95))
"""RGBA at `STOPS`, from nothing to the maximum: the colors of plasma, increasingly opaque."""
SIGNED = ((0, 90, 181, 0.95), (90, 150, 210, 0.6), (128, 128, 128, 0), (230, 150, 80, 0.6), (220, 90, 0, 0.95))
"""RGBA at `STOPS`, from what lowers a score (blue) to what raises it (orange)."""


def overlays(
    image: Image.Image | np.ndarray,
    maps: Sequence[tuple[str, str, np.ndarray]],
    word: str,
    mask: np.ndarray | None = None,
    divergence: float | None = None,
    signed: bool = False,
) -> go.Figure:
    """The image, and beside it each model's map over the image in gray, all on one scale.

    image: RGB, or uint8 `[H, W, 3]`. maps: (name, role, map `[g, g]`) of each model: attention, or attributions, which
    may be negative; each is shown in multiples of its mean absolute value. word: the word of the maps. mask: bool
    `[S, S]`, an object, drawn as an outline and scored in the title. divergence: of two maps, in bits. signed: whether
    the maps are attributions.
    """
    maps = [(name, role, _relative(values)) for name, role, values in maps]
    maximum, colors = max(peak(values) for _, _, values in maps), SIGNED if signed else SHARES
    image, panels = _scaled(image), 1 + len(maps)
    fig = figure(_finding(maps, word, mask, divergence, signed), panels)
    for column, (name, role, values) in enumerate([("the image", None, None), *maps], 1):
        axis = "" if column == 1 else column
        fig.add_layout_image(
            source=data_uri(image if values is None else _gray(image)), xref=f"x{axis}", yref=f"y{axis}", x=0, y=0,
            sizex=1, sizey=1, sizing="stretch", xanchor="left", yanchor="top", layer="below",
        )  # fmt: skip
        fig.add_annotation(
            text=f"<span style='color: {COLORS[role]}'>■</span> {escape(name)}" if role else name, showarrow=False,
            xref=f"x{axis} domain", yref=f"y{axis} domain", x=0, y=1, xanchor="left", yanchor="bottom", yshift=4,
        )  # fmt: skip
        fig.update_xaxes(range=[0, 1], visible=False, constrain="domain", col=column)
        fig.update_yaxes(
            range=[1, 0], visible=False, constrain="domain", constraintoward="top", matches=None, col=column,
            scaleanchor=f"x{axis}", scaleratio=image.height / image.width,
        )  # fmt: skip
        if values is None:
            fig.add_scatter(x=[0.5], y=[0.5], mode="markers", marker_opacity=0, hoverinfo="skip", row=1, col=1)
            continue
        rows, columns = values.shape
        fig.add_heatmap(
            z=values, x0=0.5 / columns, dx=1 / columns, y0=0.5 / rows, dy=1 / rows, row=1, col=column, name=name,
            coloraxis="coloraxis", hovertemplate=f"%{{z:.2f}} times the mean<extra>{escape(name)}</extra>",
        )  # fmt: skip
        if mask is not None:
            side = (np.arange(len(mask)) + 0.5) / len(mask)
            fig.add_contour(
                z=np.asarray(mask, float), x=side, y=side, contours=dict(coloring="none", start=0.5, end=0.5),
                line=dict(color="#ffffff", width=2), hoverinfo="skip", showscale=False, row=1, col=column,
            )  # fmt: skip
    bar = dict(
        title=dict(text=f"{'effect on the score' if signed else 'attention'}, times the mean", side="bottom"),
        orientation="h", thickness=10, len=0.5, x=1, xanchor="right", y=0, yanchor="top", ypad=4, outlinewidth=0,
        tickcolor=INK,
    )  # fmt: skip
    scale = [[stop, "rgba({}, {}, {}, {})".format(*color)] for stop, color in zip(STOPS, colors, strict=True)]
    return fig.update_layout(
        coloraxis=dict(colorscale=scale, cmin=-maximum if signed else 0, cmax=maximum, colorbar=bar), showlegend=False,
        dragmode=False, modebar=dict(orientation="h", remove=ZOOM_BUTTONS),
        height=int(165 + 800 / panels * image.height / image.width), margin=dict(l=8, r=8, t=88, b=56),
    )  # fmt: skip


def overlay(
    image: Image.Image | np.ndarray, values: np.ndarray, maximum: float, mask: np.ndarray | None, signed: bool
) -> Image.Image:
    """One map `[g, g]` over the image, as in `overlays`, as an image.

    maximum: the multiple of the mean with the brightest color, so that several maps can share it (`peak`). mask: bool
    `[S, S]`, an object whose outline is drawn. signed: whether colors distinguish what lowers a score from what raises
    it.
    """
    image, values = _scaled(image), _relative(values)
    position = (values / maximum).clip(-1, 1)
    position = (position + 1) / 2 if signed else position
    tint = np.stack(
        [np.interp(position, STOPS, channel) for channel in zip(*(SIGNED if signed else SHARES), strict=True)]
    )
    tint[3] *= 255
    layer = Image.fromarray(tint.transpose(1, 2, 0).round().astype(np.uint8))  # [g, g, RGBA]
    layer = layer.resize(image.size, Image.Resampling.NEAREST)
    shown = Image.alpha_composite(_gray(image).convert("RGBA"), layer).convert("RGB")
    if mask is not None:
        area = Image.fromarray(255 * np.asarray(mask, np.uint8)).resize(image.size, Image.Resampling.NEAREST)
        shown.paste("white", mask=ImageChops.subtract(area, area.filter(ImageFilter.MinFilter(OUTLINE))))
    return shown


def css_scale(signed: bool) -> str:
    """The color scale over a gray image as a CSS background."""
    stops = (f"rgba{color} {100 * stop:.0f}%" for stop, color in zip(STOPS, SIGNED if signed else SHARES, strict=True))
    return f"linear-gradient(90deg, {', '.join(stops)}) #555"


def _relative(values: np.ndarray) -> np.ndarray:
    """A map in multiples of its mean absolute value, so that maps of different grids can be compared."""
    values = np.asarray(values, float)
    return values / (np.abs(values).mean() or 1.0)


def peak(values: np.ndarray) -> float:
    """The brightest color's multiple of a map's mean: the map's maximum; of attributions, the 99% quantile."""
    size = np.abs(_relative(values))
    return float(np.quantile(size, 0.99) if (values < 0).any() else size.max()) or 1.0


def _scaled(image: Image.Image | np.ndarray) -> Image.Image:
    image = as_pil(image).convert("RGB")
    longest = max(image.size)
    if longest < SMALL:
        times = -(-SMALL // longest)
        how = Image.Resampling.NEAREST if longest <= PIXEL_ART_SIDE else Image.Resampling.LANCZOS
        return image.resize((image.width * times, image.height * times), how)
    image = image.copy()
    image.thumbnail((LARGE, LARGE))
    return image


def _gray(image: Image.Image) -> Image.Image:
    """The image in dark gray, so that the colors of a map stand out."""
    return image.convert("L").point(lambda tone: 24 + 0.5 * tone).convert("RGB")


def _finding(maps: list, word: str, mask: np.ndarray | None, divergence: float | None, signed: bool) -> str:
    """Share of each map on the object, and the divergence of the maps."""
    parts = []
    if mask is not None:
        area = np.asarray(mask, float)
        shares = []
        for name, _, values in maps:
            raised = Image.fromarray(values.clip(min=0).astype(np.float32))
            over = np.asarray(raised.resize(area.shape[::-1], Image.Resampling.NEAREST))
            if over.any():
                shares.append(f"{100 * (over * area).sum() / over.sum():.0f}% of the {escape(name)}'s")
        if shares:
            parts.append(f"{' and '.join(shares)} {'positive effect is on it' if signed else 'attention is on it'}")
    if divergence is not None:
        parts.append(f"the maps differ by {divergence:.2f} of 1 bit")
    return f"“{escape(word)}”" + (": " + "; ".join(parts)) * bool(parts)
