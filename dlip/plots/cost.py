"""Score against cost."""

import textwrap
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dlip.errors import UserError
from dlip.plots.style import COLOURS, INK, LABELS, SYMBOLS, axis_title, error_bars, figure
from dlip.records import COSTS, SCORES, summary, twin

KEPT = (95, 99)  # percent of the teacher's score, marked by lines
LABELLED = 8  # most points that carry their names


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
    fig = figure(title or _cost_finding(rows, cost, score))
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
            error_x=error_bars(some[f"{cost}_sd"], role), error_y=error_bars(some[f"{score}_sd"], role),
            hovertext=[_hover(row, cost, score) for _, row in some.iterrows()], hoverinfo="text",
            customdata=some["name"],
        )  # fmt: skip
    teacher = rows.loc[rows["role"] == "teacher", score].mean()
    lines = [(percent, teacher * percent / 100) for percent in KEPT if teacher > 0]
    for percent, y in lines:
        fig.add_hline(y=y, line=dict(color=INK, width=1, dash="dot"))
        fig.add_annotation(x=1, xref="paper", xanchor="left", y=y, text=f"{percent}% kept", showarrow=False, xshift=2)
    reach = [*rows[score], *(y for _, y in lines)]
    room = 0.12 * (max(reach) - min(reach) or 1)  # for the names
    fig.update_xaxes(title_text=axis_title(cost), range=[0, 1.12 * rows[cost].max()])
    fig.update_yaxes(title_text=axis_title(score), range=[min(reach) - room, max(reach) + room])
    fig.update_layout(margin_r=100)
    return fig


# --- parts ----------------------------------------------------------------------------------------------------


def _place(role: str, x: float) -> str:
    """Where a point's name stands, clear of the y axis; x: the point's place, 0 to 1."""
    return f"{'bottom' if role == 'undistilled' else 'top'} {'right' if x < 0.3 else 'center'}"


def _hover(row: pd.Series, cost: str, score: str) -> str:
    def said(column: str) -> str:
        spread = f" ± {row[f'{column}_sd']:.2g}" if row[f"{column}_sd"] > 0 else ""
        return f"{axis_title(column)}: {row[column]:.4g}{spread}"

    command = "<br>".join(map(escape, textwrap.wrap(row["command"], 48, break_on_hyphens=False)))
    runs = f"{row['runs']} seed{'s' if row['runs'] > 1 else ''}"
    lines = [f"<b>{escape(row['name'])}</b> ({row['role']}, {runs})", said(score), said(cost)]
    return "<br>".join([*lines, escape(row["model"]), f"<i>{command}</i>"])


def _cost_finding(rows: pd.DataFrame, cost: str, score: str) -> str:
    """What the cheapest distilled student that keeps enough keeps, or that which keeps most; beside its like alone."""
    what, price = LABELS[score][0], LABELS[cost][0]
    teacher, students = rows[rows["role"] == "teacher"], rows[rows["role"] == "distilled"]
    if teacher.empty or students.empty:
        return f"{what} against {price}"
    whole = teacher.iloc[0]
    enough = students[students[score] >= KEPT[0] / 100 * whole[score]]
    order = ([cost, score], [True, False]) if len(enough) else ([score, cost], [False, True])
    student = (enough if len(enough) else students).sort_values(order[0], ascending=order[1]).iloc[0]
    who = "Distilled" if len(students) == 1 else escape(student["name"])
    kept = f"{100 * student[score] / whole[score]:.1f}% of {what}" if whole[score] else what
    text = f"{who} keeps {kept} with {100 * student[cost] / whole[cost]:.0f}% of the {price}"
    alone = twin(rows, student)
    if alone is None or not whole[score]:
        return text
    return f"{text}; undistilled {100 * alone[score] / whole[score]:.1f}%"
