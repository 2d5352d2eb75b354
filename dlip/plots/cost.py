"""Score against cost."""

import textwrap
from html import escape
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.plots.style import COLOURS, INK, LABELS, SYMBOLS, axis_title, error_bars, figure
from dlip.records.compare import describe_test_sets, summary, undistilled_twin
from dlip.records.schema import COSTS, SCORES

KEPT = (95, 99)  # percent of the teacher's score, marked by lines
LABELLED = 8  # most points that all carry their names; of more only the front's
WIDTH, HEIGHT = 480, 300  # px that points have at least
MARK, LETTER, LINE = 8, 6.5, 14  # px: half of a point with the space around it, width of a letter, height of a line

PLACES = {
    "top center": (0, 1), "bottom center": (0, -1), "middle right": (1, 0), "middle left": (-1, 0), "top right": (1, 1),
    "bottom right": (1, -1), "top left": (-1, 1), "bottom left": (-1, -1),
}  # fmt: skip
"""Where a name may stand by its point, the first choice first, and that as steps (rightwards, upwards)."""


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

    df: as `dlip.records.load` gives it, measured on the same pictures. The line joins the models that none beats on
    both axes; dotted lines stand at 95 and 99% of the teacher's score. Raises UserError where an axis is no score or
    cost, the runs were measured on different pictures, or none has both figures.
    """
    for column, axis in ((cost, COSTS), (score, SCORES)):
        if column not in axis:
            raise UserError(f"{column!r} cannot be an axis here; choose one of {', '.join(axis)}")
    rows = summary(df.dropna(subset=[cost, score]))
    if rows.empty:
        raise UserError(f"no record has both {cost} and {score}; choose other axes")
    if len(describe_test_sets(rows)) > 1:
        raise UserError(f"the records are of {'; '.join(describe_test_sets(rows))}; keep those of one of them")
    fig = figure(title or _cost_finding(rows, cost, score))
    front = rows.iloc[pareto(list(rows[cost]), list(rows[score]))]
    fig.add_scatter(
        x=front[cost], y=front[score], mode="lines", line=dict(color=INK, width=1.5, shape="hv"), hoverinfo="skip",
        name="none better at this cost", showlegend=len(front) > 1,
    )  # fmt: skip
    teacher = rows.loc[rows["role"] == "teacher", score].mean()
    lines = [(percent, teacher * percent / 100) for percent in KEPT if teacher > 0]
    spread = {column: rows[f"{column}_sd"].fillna(0) for column in (cost, score)}
    reach = [*(rows[score] + spread[score]), *(rows[score] - spread[score]), *(y for _, y in lines)]
    room = 0.12 * (max(reach) - min(reach) or 1)  # for the names
    across, up = [0, 1.12 * (rows[cost] + spread[cost]).max()], [min(reach) - room, max(reach) + room]
    names = _names(rows, front, [y for _, y in lines], (cost, score), (across, up))
    for role, some in rows.groupby("role", sort=False):
        texts, places = zip(*(names.get(i, ("", "top center")) for i in some.index), strict=True)
        fig.add_scatter(
            x=some[cost], y=some[score], mode="markers+text", name=role, text=texts, textposition=places,
            textfont=dict(size=11), marker=dict(color=COLOURS[role], symbol=SYMBOLS[role], size=12), cliponaxis=False,
            error_x=error_bars(some[f"{cost}_sd"], role), error_y=error_bars(some[f"{score}_sd"], role),
            hovertext=[hover(row, cost, score) for _, row in some.iterrows()], hoverinfo="text",
            customdata=some["name"],
        )  # fmt: skip
    close = len(lines) > 1 and abs(lines[0][1] - lines[1][1]) / (up[1] - up[0]) < LINE / HEIGHT
    for percent, y in lines:
        fig.add_hline(y=y, line=dict(color=INK, width=1, dash="dot"))
        at = {KEPT[0]: "top", KEPT[1]: "bottom"}[percent] if close else "middle"
        fig.add_annotation(x=1, xref="paper", xanchor="left", y=y, yanchor=at, text=f"{percent}% kept", showarrow=False,
                           xshift=2)  # fmt: skip
    fig.update_xaxes(title_text=axis_title(cost), range=across)
    fig.update_yaxes(title_text=axis_title(score), range=up)
    fig.update_layout(margin_r=100)
    return fig


# --- parts ----------------------------------------------------------------------------------------------------


def _names(rows: pd.DataFrame, front: pd.DataFrame, lines: list[float], axes: tuple[str, str], ranges) -> dict:
    """Place in `rows` -> the name of that point and where it stands, clear of all that is drawn and of other names.

    Without names: points that have no room for one, and where there are more than `LABELLED` all that are not on the
    front. Boxes are (left, low, right, high) in px.
    """
    (left, right), (low, high) = ranges
    x, y = (rows[axis].to_numpy() for axis in axes)
    x, y = WIDTH * (x - left) / (right - left), HEIGHT * (y - low) / (high - low)
    spread = HEIGHT * rows[f"{axes[1]}_sd"].fillna(0).to_numpy() / (high - low)
    steps = [rows.index.get_loc(i) for i in front.index]
    drawn = [(a - MARK, b - MARK, a + MARK, b + MARK) for a, b in zip(x, y, strict=True)]
    drawn += [(a, b - sd, a, b + sd) for a, b, sd in zip(x, y, spread, strict=True)]
    drawn += [(0, at, WIDTH, at) for at in (HEIGHT * (line - low) / (high - low) for line in lines)]
    for i, j in pairwise(steps):
        drawn += [(x[i], y[i], x[j], y[i]), (x[j], y[i], x[j], y[j])]
    found = {}
    for k, (i, name) in enumerate(rows["name"].items()):
        if len(rows) > LABELLED and i not in front.index:
            continue
        wide = LETTER * len(name)
        for place, (sideways, upwards) in PLACES.items():
            start = x[k] + sideways * MARK - wide * (1 - sideways) / 2
            base = y[k] + upwards * MARK - LINE * (1 - upwards) / 2
            box = (start, base, start + wide, base + LINE)
            if start >= 0 and box[2] <= WIDTH + MARK and not any(_meet(box, other) for other in drawn):
                found[i] = escape(name), place
                drawn.append(box)
                break
    return found


def _meet(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def hover(row: pd.Series, cost: str, score: str) -> str:
    """What is told of a point of `summary` that is pointed at."""

    def said(column: str) -> str:
        spread = f" ± {row[f'{column}_sd']:.2g}" if row[f"{column}_sd"] > 0 else ""
        return f"{axis_title(column)}: {row[column]:.4g}{spread}"

    command = "<br>".join(map(escape, textwrap.wrap(row["command"], 42, break_on_hyphens=False)))
    runs = plural(row["runs"], "seed")
    lines = [f"<b>{escape(row['name'])}</b> ({row['role']}, {runs})", said(score), said(cost)]
    return "<br>".join([*lines, escape(row["model"]), f"<i>{command}</i>"])


def _cost_finding(rows: pd.DataFrame, cost: str, score: str) -> str:
    """What the cheapest distilled student that keeps enough keeps, or that which keeps most; beside its like alone."""
    what, price = LABELS[score][0], LABELS[cost][0].removeprefix("share of the teacher's ")
    teacher, students = rows[rows["role"] == "teacher"], rows[rows["role"] == "distilled"]
    if teacher.empty or students.empty:
        return f"{what} against {price}"
    whole = teacher.iloc[0]
    enough = students[students[score] >= KEPT[0] / 100 * whole[score]]
    order = ([cost, score], [True, False]) if len(enough) else ([score, cost], [False, True])
    student = (enough if len(enough) else students).sort_values(order[0], ascending=order[1]).iloc[0]
    named = len(students) > 1 and student["name"] != "student"
    who = f"The distilled student {escape(student['name'])}" if named else "The distilled student"
    kept = f"{100 * student[score] / whole[score]:.1f}% of {what}" if whole[score] else what
    text = f"{who} keeps {kept} with {100 * student[cost] / whole[cost]:.0f}% of the {price}"
    alone = undistilled_twin(rows, student)
    if alone is None or not whole[score] or any(alone[what] != student[what] for what in ("model", "train_images")):
        return text
    return f"{text}; without distillation {100 * alone[score] / whole[score]:.1f}%"
