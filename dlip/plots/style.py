"""What all figures share: a color per role, names and units, an ink that is readable on light and dark pages."""

import textwrap

import pandas as pd
import plotly.graph_objects as go
from PIL import ImageColor

COLORS = {"teacher": "#0072B2", "undistilled": "#D55E00", "distilled": "#009E73", "quantized": "#8C6D1F"}
"""Role -> color, all but the last from the color-blind safe palette of Okabe and Ito."""
SYMBOLS = {"teacher": "diamond", "undistilled": "square", "distilled": "circle", "quantized": "triangle-up"}
INK, RULE, CLEAR = "#777777", "rgba(128, 128, 128, 0.25)", "rgba(0, 0, 0, 0)"
FONT = "system-ui, sans-serif"
REFERENCE_LINE = dict(color=COLORS["teacher"], width=1.5, dash="dot")
"""Style of the line at the teacher's score."""

LABELS = {
    "tr1": ("TR@1", "%"), "tr5": ("TR@5", "%"), "tr10": ("TR@10", "%"),
    "ir1": ("IR@1", "%"), "ir5": ("IR@5", "%"), "ir10": ("IR@10", "%"),
    "joint_tr1": ("TR@1 by the joint sum", "%"), "joint_ir1": ("IR@1 by the joint sum", "%"),
    "itc_tr1": ("TR@1 by ITC alone", "%"), "itc_ir1": ("IR@1 by ITC alone", "%"),
    "bleu4": ("BLEU-4", "x 100"), "meteor": ("METEOR", "x 100"), "rougeL": ("ROUGE-L", "x 100"),
    "cider": ("CIDEr", "x 100"), "spice": ("SPICE", "x 100"), "facts_f1": ("facts F1", "%"),
    "composite": ("composite score", "% of the range from floor to teacher"),
    "vqa": ("VQA over all questions", "%"), "vqa_mean": ("VQA by type", "%, mean over types"),
    "pointing": ("words that point at their object", "%"), "mass": ("attention on the word's object", "%"),
    "pointing_decoder": ("generated words that point at their object", "%"),
    "mass_decoder": ("attention of generated words on their object", "%"),
    "params_m": ("parameters", "M"), "weights_mb": ("size of the weights", "MB"),
    "flops_g": ("FLOPs", "G per image and text"),
    "latency_ms": ("median latency", "ms"), "latency_p95_ms": ("95th percentile of latency", "ms"),
    "latency_share": ("share of the teacher's latency", "%"),
    "params_m_paper": ("parameters, paper's count", "M"),
    "macs_g_paper": ("multiply-accumulates, paper's count", "G"),
}  # fmt: skip
"""Column of scores and costs -> its name and unit."""

AXIS = dict(
    gridcolor=RULE, zerolinecolor=RULE, linecolor=INK, tickcolor=INK, showline=True, ticks="outside", title_standoff=8,
    automargin=True,
)  # fmt: skip


def tint(role: str) -> str:
    """A role's color, transparent enough for marks in `INK` to be readable on it."""
    return f"rgba{(*ImageColor.getrgb(COLORS[role]), 0.3)}"


def figure(title: str, panels: int = 1, gap: float = 0.05) -> go.Figure:
    """An empty figure with a wrapped title, its panels side by side over one y axis.

    gap: space between panels, as a share of the width.
    """
    hover = dict(
        bgcolor="#24292f", bordercolor="#24292f", font=dict(family=FONT, color="#ffffff", size=12), align="left"
    )
    title = dict(text="<br>".join(textwrap.wrap(title, 68, break_on_hyphens=False)), font=dict(size=16))
    layout = dict(
        title=dict(**title, x=0, xref="paper", y=1, yanchor="top", pad=dict(t=16)), hovermode="closest",
        font=dict(family=FONT, size=12, color=INK), paper_bgcolor=CLEAR, plot_bgcolor=CLEAR, template="none",
        legend=dict(orientation="h", y=1, yanchor="bottom", x=0), hoverlabel=hover, height=440,
        modebar=dict(orientation="v", bgcolor=CLEAR, color=INK), margin=dict(l=56, r=40, t=88, b=64),
    )  # fmt: skip
    fig = go.Figure(layout=layout).set_subplots(1, panels, shared_yaxes=True, horizontal_spacing=gap)
    return fig.update_xaxes(**AXIS).update_yaxes(**AXIS)


def axis_title(column: str) -> str:
    """A column's name with its unit."""
    name, unit = LABELS[column]
    return f"{name} ({unit})"


def error_bars(spread: pd.Series, role: str) -> dict:
    """Error bars of `spread` up and down, none where it is NaN."""
    return dict(type="data", array=spread.fillna(0), color=COLORS[role], thickness=1.5, width=4)
