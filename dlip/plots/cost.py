"""Every figure, drawn with plotly from run records: one colour a role, a title that says the finding.

Backgrounds are transparent and the ink is a grey that reads on dark and light pages alike.
"""

import textwrap
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dlip.errors import UserError
from dlip.records import COSTS, ROLES, SCORES, summary, twin

COLOURS = {"teacher": "#0072B2", "undistilled": "#D55E00", "distilled": "#009E73"}
"""Role -> colour, of Okabe and Ito's palette, which colour-blind people tell apart."""
SYMBOLS = {"teacher": "diamond", "undistilled": "square", "distilled": "circle"}
INK, RULE = "#777777", "rgba(128, 128, 128, 0.25)"
FONT = "system-ui, sans-serif"
KEPT = (95, 99)  # percent of the teacher's score, marked by lines
LABELLED = 8  # most points that carry their names

LABELS = {
    "tr1": ("TR@1", "%"), "tr5": ("TR@5", "%"), "tr10": ("TR@10", "%"),
    "ir1": ("IR@1", "%"), "ir5": ("IR@5", "%"), "ir10": ("IR@10", "%"),
    "bleu4": ("BLEU-4", "x 100"), "meteor": ("METEOR", "x 100"), "rougeL": ("ROUGE-L", "x 100"),
    "cider": ("CIDEr", "x 100"), "spice": ("SPICE", "x 100"), "vqa": ("VQA accuracy", "%"),
    "params_m": ("parameters", "M"), "flops_g": ("FLOPs", "G a picture and text"),
    "latency_ms": ("latency", "ms, median"), "latency_p95_ms": ("latency", "ms, 95th percentile"),
    "params_m_paper": ("parameters, paper's count", "M"),
    "macs_g_paper": ("multiply-accumulates, paper's count", "G"),
}  # fmt: skip
"""Column of scores and costs -> its name and unit."""

UNITS = {"hr": "1 − cosine", "total": "weighted sum"}
"""Family of loss terms -> unit of its loss; all others are in nats."""


def pareto(costs: list[float], scores: list[float]) -> list[int]:
    """Places of the points that no other beats, by rising cost.

    A point is beaten where another costs no more and scores no less, and is better in one of them. NaNs are no points.
    """
    points = [i for i in range(len(costs)) if not np.isnan(costs[i]) and not np.isnan(scores[i])]
    front = []
    for i in sorted(points, key=lambda i: (costs[i], -scores[i])):
        best = front[-1] if front else None
        if best is None or scores[i] > scores[best] or (costs[i], scores[i]) == (costs[best], scores[best]):
            front.append(i)
    return front


def accuracy_cost(df: pd.DataFrame, cost: str = "params_m", score: str = "tr1", title: str | None = None) -> go.Figure:
    """Score against cost, a point for each name (mean over seeds, bars of one standard deviation).

    df: as `dlip.records.load` gives it, of one data set and split. The line joins the models that none beats on both
    axes; dotted lines stand at 95 and 99% of the teacher's score. Raises UserError where an axis is no score or cost,
    the runs are of several data sets, or none has both figures.
    """
    for column, axis in ((cost, COSTS), (score, SCORES)):
        if column not in axis:
            raise UserError(f"{column!r} cannot be an axis here; choose one of {', '.join(axis)}")
    rows = summary(df.dropna(subset=[cost, score]))
    if rows.empty:
        raise UserError(f"no record has both {cost} and {score}; choose other axes")
    if len(rows[["data", "split"]].drop_duplicates()) > 1:
        raise UserError("the records are of several data sets or splits; keep those of one")
    fig = _figure(title or _cost_finding(rows, cost, score))
    front = rows.iloc[pareto(list(rows[cost]), list(rows[score]))]
    fig.add_scatter(
        x=front[cost], y=front[score], mode="lines", line=dict(color=INK, width=1.5, shape="hv"), hoverinfo="skip",
        name="none better at this cost",
    )  # fmt: skip
    for role, some in rows.groupby("role", sort=False):
        fig.add_scatter(
            x=some[cost], y=some[score], mode="markers+text" if len(rows) <= LABELLED else "markers", name=role,
            text=some["name"].map(escape), textposition=[_place(role, x / rows[cost].max()) for x in some[cost]],
            textfont=dict(size=11), marker=dict(color=COLOURS[role], symbol=SYMBOLS[role], size=12), cliponaxis=False,
            error_x=_bars(some[f"{cost}_sd"], role), error_y=_bars(some[f"{score}_sd"], role),
            hovertext=[_hover(row, cost, score) for _, row in some.iterrows()], hoverinfo="text",
        )  # fmt: skip
    teacher = rows.loc[rows["role"] == "teacher", score].mean()
    lines = [(percent, teacher * percent / 100) for percent in KEPT if teacher > 0]
    for percent, y in lines:
        fig.add_hline(y=y, line=dict(color=INK, width=1, dash="dot"))
        fig.add_annotation(x=1, xref="paper", xanchor="left", y=y, text=f"{percent}% kept", showarrow=False, xshift=2)
    reach = [*rows[score], *(y for _, y in lines)]
    room = 0.12 * (max(reach) - min(reach) or 1)  # for the names
    fig.update_xaxes(title_text=_axis(cost), range=[0, 1.12 * rows[cost].max()])
    fig.update_yaxes(title_text=_axis(score), range=[min(reach) - room, max(reach) + room])
    fig.update_layout(margin_r=100)
    return fig


def loss_curves(records: list[dict], term: str, title: str | None = None) -> go.Figure:
    """One term's loss over the steps of training, unweighted, a line a run.

    records: as `dlip.records.read` gives them. Raises UserError where no run has the term.
    """
    runs = [record for record in records if term in record["losses"]]
    if not runs:
        raise UserError(f"no record has losses of {term!r}; choose one of {', '.join(terms(records)) or 'none'}")
    fig = _figure(title or _loss_finding(runs, term))
    shown = set()
    for record in runs:
        role, name = record["role"], escape(record["name"])
        fig.add_scatter(
            x=record["losses"]["step"], y=record["losses"][term], mode="lines",
            line=dict(color=COLOURS[role], width=1.5), opacity=0.9, name=role, legendgroup=role,
            showlegend=role not in shown,
            hovertemplate=f"{name}, seed {record['seed']}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        shown.add(role)
    fig.update_xaxes(title_text="step")
    fig.update_yaxes(title_text=UNITS.get(term.split(".")[0], "nats"), rangemode="tozero")
    return fig


def terms(records: list[dict]) -> list[str]:
    """The loss terms of the records, each once, in the order in which they first stand."""
    return [*dict.fromkeys(term for record in records for term in record["losses"] if term != "step")]


# --- parts ----------------------------------------------------------------------------------------------------


def _figure(title: str) -> go.Figure:
    ink = dict(gridcolor=RULE, zerolinecolor=RULE, linecolor=INK, tickcolor=INK)
    axis = dict(**ink, showline=True, ticks="outside", title_standoff=8, automargin=True)
    clear = "rgba(0, 0, 0, 0)"
    hover = dict(bgcolor="#24292f", bordercolor="#24292f", font=dict(family=FONT, color="#ffffff"), align="left")
    title = dict(text="<br>".join(textwrap.wrap(title, 68)), font=dict(size=16))
    layout = dict(
        title=dict(**title, x=0, xref="paper", y=1, yanchor="top", pad=dict(t=16)), hovermode="closest",
        font=dict(family=FONT, size=12, color=INK), paper_bgcolor=clear, plot_bgcolor=clear, template="none",
        xaxis=axis, yaxis=axis, legend=dict(orientation="h", y=1, yanchor="bottom", x=0), hoverlabel=hover,
        modebar=dict(orientation="v", bgcolor=clear, color=INK), margin=dict(l=56, r=40, t=88, b=64), height=440,
    )  # fmt: skip
    return go.Figure(layout=layout)


def _axis(column: str) -> str:
    name, unit = LABELS[column]
    return f"{name} ({unit})"


def _bars(spread: pd.Series, role: str) -> dict:
    return dict(type="data", array=spread.fillna(0), color=COLOURS[role], thickness=1.5, width=4)


def _place(role: str, x: float) -> str:
    """Where a point's name stands, clear of the y axis; x: the point's place, 0 to 1."""
    return f"{'bottom' if role == 'undistilled' else 'top'} {'right' if x < 0.3 else 'center'}"


def _hover(row: pd.Series, cost: str, score: str) -> str:
    def figure(column: str) -> str:
        spread = f" ± {row[f'{column}_sd']:.2g}" if row[f"{column}_sd"] > 0 else ""
        return f"{_axis(column)}: {row[column]:.4g}{spread}"

    command = "<br>".join(map(escape, textwrap.wrap(row["command"], 48, break_on_hyphens=False)))
    runs = f"{row['runs']} seed{'s' if row['runs'] > 1 else ''}"
    lines = [f"<b>{escape(row['name'])}</b> ({row['role']}, {runs})", figure(score), figure(cost)]
    return "<br>".join([*lines, escape(row["model"]), f"<i>{command}</i>"])


def _cost_finding(rows: pd.DataFrame, cost: str, score: str) -> str:
    """How much of the teacher's score its cheapest distilled student keeps, beside the same student alone."""
    what, price = LABELS[score][0], LABELS[cost][0]
    teacher, students = rows[rows["role"] == "teacher"], rows[rows["role"] == "distilled"]
    if teacher.empty or students.empty:
        return f"{what} against {price}"
    student, whole = students.sort_values([cost, score], ascending=[True, False]).iloc[0], teacher.iloc[0]
    who = "Distilled" if len(students) == 1 else escape(student["name"])
    kept = f"{100 * student[score] / whole[score]:.1f}% of {what}" if whole[score] else what
    text = f"{who} keeps {kept} with {100 * student[cost] / whole[cost]:.0f}% of the {price}"
    alone = twin(rows, student)
    if alone is None or not whole[score]:
        return text
    return f"{text}; undistilled {100 * alone[score] / whole[score]:.1f}%"


def _loss_finding(runs: list[dict], term: str) -> str:
    """Where the curves end: the mean of the last tenth of their points, over seeds; the range where names differ."""
    ends = {role: {} for role in ROLES}  # role -> name -> losses
    for record in runs:
        values = [v for v in record["losses"][term] if v is not None]
        last = values[-max(1, len(values) // 10) :]
        ends[record["role"]].setdefault(record["name"], []).extend(last)
    said = []
    for role, losses in ends.items():
        means = sorted({f"{np.mean(values):.2f}" for values in losses.values() if values}, key=float)
        if means:
            said.append(f"{' to '.join([means[0], means[-1]][: len(means)])} {role}")
    return f"{escape(term)} ends at {', '.join(said)}"
