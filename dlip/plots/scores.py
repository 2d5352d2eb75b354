"""Scores of runs that cost the same, one below the other."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.plots.cost import hover
from dlip.plots.style import COLOURS, LABELS, SYMBOLS, axis_title, error_bars, figure
from dlip.records.compare import summary
from dlip.records.schema import ROLES


def score_rows(df: pd.DataFrame, cost: str = "params_m", score: str = "tr1", title: str | None = None) -> go.Figure:
    """A point for each student (mean over seeds, bars of one standard deviation), best first; the teacher's as a line.

    df: as `dlip.records.load` gives it, measured on the same pictures. cost: is told of a point that is pointed at.
    Raises UserError where no student has both figures.
    """
    rows = summary(df.dropna(subset=[cost, score]))
    students = rows[rows["role"] != "teacher"].sort_values(score, ascending=False)
    students["shown"] = students["name"].map(escape)
    if students.empty:
        raise UserError(f"no student has both {cost} and {score}; choose other axes")
    fig, whole = figure(title or _finding(students, score)), rows.loc[rows["role"] == "teacher", score]
    for role, some in students.groupby("role", sort=False):
        fig.add_scatter(
            x=some[score], y=some["shown"], mode="markers", name=role, legendrank=ROLES.index(role), cliponaxis=False,
            marker=dict(color=COLOURS[role], symbol=SYMBOLS[role], size=12),
            error_x=error_bars(some[f"{score}_sd"], role), customdata=some["name"], hoverinfo="text",
            hovertext=[hover(row, cost, score) for _, row in some.iterrows()],
        )  # fmt: skip
    for value in whole:
        fig.add_vline(x=value, line=dict(color=COLOURS["teacher"], width=1.5, dash="dot"), annotation_text="teacher",
                      annotation_position="top")  # fmt: skip
    fig.update_xaxes(title_text=axis_title(score))
    fig.update_yaxes(autorange="reversed", ticks="", categoryorder="array", categoryarray=students["shown"])
    return fig.update_layout(height=190 + 32 * len(students))


def _finding(students: pd.DataFrame, score: str) -> str:
    best, last, name = students.iloc[0], students.iloc[-1], LABELS[score][0]
    if len(students) == 1:
        return f"{name} is {best[score]:.1f} for {best['shown']}"
    return (f"At the same cost {name} is best for {best['shown']} ({best[score]:.1f}) and lowest for {last['shown']} "
            f"({last[score]:.1f})")  # fmt: skip
