"""Score against cost, and scores of runs of equal cost."""

import textwrap
from html import escape
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.common.text import mean_and_spread, plural
from dlip.plots.style import COLORS, INK, LABELS, REFERENCE_LINE, SYMBOLS, axis_title, error_bars, figure
from dlip.records.compare import describe_test_sets, summary, undistilled_twin
from dlip.records.schema import COSTS, ROLES, SCORES

KEPT = (95, 99)
"""Percent of the teacher's score that are marked by lines."""
MAX_LABELED, FEW = 8, 3
"""Up to how many points all carry their names; of more, those on the front, and those of a role with so few of them."""
WIDTH, HEIGHT = 480, 300
"""px: the smallest plot area for which names are placed."""
MARK, LETTER, LINE = 8, 6.5, 14
"""px: half of a point with its margin, width of a letter, height of a line."""
NAME_POSITIONS = {
    "top center": (0, 1), "bottom center": (0, -1), "middle right": (1, 0), "middle left": (-1, 0), "top right": (1, 1),
    "bottom right": (1, -1), "top left": (-1, 1), "bottom left": (-1, -1),
}  # fmt: skip
"""Position of a name beside its point, the preferred ones first -> its direction (rightwards, upwards)."""


def pareto(costs: list[float], scores: list[float]) -> list[int]:
    """Indices of the Pareto-optimal points, by increasing cost.

    A point is dominated if another costs no more, scores no less, and is better in one of the two. NaNs are ignored.
    """
    points = [i for i in range(len(costs)) if not np.isnan(costs[i]) and not np.isnan(scores[i])]
    front = []
    for i in sorted(points, key=lambda i: (costs[i], -scores[i])):
        best = front[-1] if front else None
        if best is None or scores[i] > scores[best] or (costs[i], scores[i]) == (costs[best], scores[best]):
            front.append(i)
    return front


def accuracy_cost(df: pd.DataFrame, cost: str = "params_m", score: str = "tr1") -> go.Figure:
    """Score against cost, a point per name (mean over seeds, bars of one standard deviation).

    df: `dlip.records.load` of one test set. A line joins the Pareto-optimal models; dotted lines mark 95 and 99% of the
    teacher's score. Raises UserError if an axis is not a cost or score, the runs have different test sets, or no run
    has both figures.
    """
    for column, axis in ((cost, COSTS), (score, SCORES)):
        if column not in axis:
            raise UserError(f"{column!r} cannot be an axis here; choose one of {', '.join(axis)}")
    rows = summary(df.dropna(subset=[cost, score]))
    if rows.empty:
        raise UserError(f"no record has both {cost} and {score}; choose other axes")
    if len(test_sets := describe_test_sets(rows)) > 1:
        raise UserError(f"the records are of {'; '.join(test_sets)}; keep those of one of them")
    teachers = rows.loc[rows["role"] == "teacher", "name"]
    if len(teachers) > 1:
        raise UserError(f"the records have the teachers {', '.join(teachers)}; keep those of one of them")
    fig = figure(_cost_finding(rows, cost, score))
    front = rows.iloc[pareto(list(rows[cost]), list(rows[score]))]
    fig.add_scatter(
        x=front[cost], y=front[score], mode="lines", line=dict(color=INK, width=1.5, shape="hv"), hoverinfo="skip",
        name="best at this cost", showlegend=len(front) > 1,
    )  # fmt: skip
    teacher = rows.loc[rows["role"] == "teacher", score].mean()
    lines = [(percent, teacher * percent / 100) for percent in KEPT if teacher > 0]
    spread = {column: rows[f"{column}_sd"].fillna(0) for column in (cost, score)}
    reach = [*(rows[score] + spread[score]), *(rows[score] - spread[score]), *(y for _, y in lines)]
    margin = 0.12 * (max(reach) - min(reach) or 1)  # for the names
    x_range, y_range = [0, 1.12 * (rows[cost] + spread[cost]).max()], [min(reach) - margin, max(reach) + margin]
    names = _place_names(rows, front, [y for _, y in lines], (cost, score), (x_range, y_range))
    # the teacher on top, and on it the quantized one, which costs as many parameters and scores nearly the same
    for role, some in sorted(rows.groupby("role"), key=lambda group: (group[0] == "quantized", -ROLES.index(group[0]))):
        texts, positions = zip(*(names.get(i, ("", "top center")) for i in some.index), strict=True)
        fig.add_scatter(
            x=some[cost], y=some[score], mode="markers+text", name=role, legendrank=ROLES.index(role), text=texts,
            textposition=positions, textfont=dict(size=11), cliponaxis=False,
            marker=dict(color=COLORS[role], symbol=SYMBOLS[role], size=12),
            error_x=error_bars(some[f"{cost}_sd"], role), error_y=error_bars(some[f"{score}_sd"], role),
            hovertext=[_hover(row, cost, score) for _, row in some.iterrows()], hoverinfo="text",
            customdata=some["name"],
        )  # fmt: skip
    close = len(lines) > 1 and abs(lines[0][1] - lines[1][1]) / (y_range[1] - y_range[0]) < LINE / HEIGHT
    for percent, y in lines:
        fig.add_hline(y=y, line=dict(color=INK, width=1, dash="dot"))
        anchor = {KEPT[0]: "top", KEPT[1]: "bottom"}[percent] if close else "middle"
        fig.add_annotation(
            text=f"{percent}% kept", showarrow=False, x=1, xref="paper", xanchor="left", xshift=2, y=y, yanchor=anchor
        )
    fig.update_xaxes(title_text=axis_title(cost), range=x_range)
    fig.update_yaxes(title_text=axis_title(score), range=y_range)
    return fig.update_layout(margin_r=100)


def score_rows(df: pd.DataFrame, cost: str = "params_m", score: str = "tr1") -> go.Figure:
    """A point per student (mean over seeds, bars of one standard deviation), best first; the teacher's score as a line.

    df: `dlip.records.load` of one test set. cost: shown on hover. Raises UserError if no student has both figures.
    """
    rows = summary(df.dropna(subset=[cost, score]))
    students = rows[rows["role"] != "teacher"].sort_values(score, ascending=False)
    students["label"] = students["name"].map(escape)
    if students.empty:
        raise UserError(f"no student has both {cost} and {score}; choose other axes")
    fig = figure(_rows_finding(students, score))
    for role, some in students.groupby("role", sort=False):
        fig.add_scatter(
            x=some[score], y=some["label"], mode="markers", name=role, legendrank=ROLES.index(role), cliponaxis=False,
            marker=dict(color=COLORS[role], symbol=SYMBOLS[role], size=12),
            error_x=error_bars(some[f"{score}_sd"], role), customdata=some["name"], hoverinfo="text",
            hovertext=[_hover(row, cost, score) for _, row in some.iterrows()],
        )  # fmt: skip
    for value in rows.loc[rows["role"] == "teacher", score]:
        fig.add_vline(x=value, line=REFERENCE_LINE, annotation_text="teacher", annotation_position="top")
    fig.update_xaxes(title_text=axis_title(score))
    fig.update_yaxes(autorange="reversed", ticks="", categoryorder="array", categoryarray=students["label"])
    return fig.update_layout(height=190 + 32 * len(students))


def _rows_finding(students: pd.DataFrame, score: str) -> str:
    best, last, name = students.iloc[0], students.iloc[-1], LABELS[score][0]

    def value(row: pd.Series) -> str:
        return mean_and_spread(row[score], row[f"{score}_sd"])

    if len(students) == 1:
        return f"{name} is {value(best)} for {best['label']}"
    seeds = ", one seed each" if students["runs"].max() == 1 else ""
    return (
        f"At the same cost {name} is best for {best['label']} ({value(best)}) and lowest for {last['label']} "
        f"({value(last)}){seeds}"
    )


def _place_names(rows: pd.DataFrame, front: pd.DataFrame, lines: list[float], axes: tuple[str, str], ranges) -> dict:
    """Index in `rows` -> name of the point and its position, without overlaps.

    Points without room for a name get none, nor do some if there are more than `MAX_LABELED`. lines: heights of
    horizontal lines. Boxes are (left, low, right, high) in px.
    """
    (left, right), (low, high) = ranges
    x, y = (rows[axis].to_numpy() for axis in axes)
    x, y = WIDTH * (x - left) / (right - left), HEIGHT * (y - low) / (high - low)
    across, spread = (rows[f"{axis}_sd"].fillna(0).to_numpy() for axis in axes)
    across, spread = WIDTH * across / (right - left), HEIGHT * spread / (high - low)
    steps = [rows.index.get_loc(i) for i in front.index]
    drawn = [(a - MARK, b - MARK, a + MARK, b + MARK) for a, b in zip(x, y, strict=True)]
    drawn += [(a, b - sd, a, b + sd) for a, b, sd in zip(x, y, spread, strict=True)]
    drawn += [(a - sd, b, a + sd, b) for a, b, sd in zip(x, y, across, strict=True)]
    drawn += [(0, at, WIDTH, at) for at in (HEIGHT * (line - low) / (high - low) for line in lines)]
    for i, j in pairwise(steps):
        drawn += [(x[i], y[i], x[j], y[i]), (x[j], y[i], x[j], y[j])]
    names, few = {}, rows.groupby("role")["role"].transform("size") <= FEW
    for k, (i, name) in enumerate(rows["name"].items()):
        if len(rows) > MAX_LABELED and i not in front.index and not few[i]:
            continue
        width = LETTER * len(name)
        for position, (sideways, upwards) in NAME_POSITIONS.items():
            start = x[k] + sideways * MARK - width * (1 - sideways) / 2
            base = y[k] + upwards * MARK - LINE * (1 - upwards) / 2
            box = (start, base, start + width, base + LINE)
            if start >= 0 and box[2] <= WIDTH + MARK and not any(_overlap(box, other) for other in drawn):
                names[i] = escape(name), position
                drawn.append(box)
                break
    return names


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _hover(row: pd.Series, cost: str, score: str) -> str:
    """The hover text of a row of `summary`."""

    def figure_line(column: str) -> str:
        spread = f" ± {row[f'{column}_sd']:.2g}" if row[f"{column}_sd"] > 0 else ""
        return f"{axis_title(column)}: {row[column]:.4g}{spread}"

    command = "<br>".join(map(escape, textwrap.wrap(row["command"], 42, break_on_hyphens=False)))
    runs = plural(row["runs"], "seed")
    lines = [f"<b>{escape(row['name'])}</b> ({row['role']}, {runs})", figure_line(score), figure_line(cost)]
    return "<br>".join([*lines, escape(row["model"]), f"<i>{command}</i>"])


def _cost_finding(rows: pd.DataFrame, cost: str, score: str) -> str:
    """What the cheapest distilled student with 95% of the teacher's score keeps, else the best one; and its twin."""
    what, cost_name = LABELS[score][0], LABELS[cost][0].removeprefix("share of the teacher's ")
    teacher, students = rows[rows["role"] == "teacher"], rows[rows["role"] == "distilled"]
    if teacher.empty or students.empty:
        return f"{what} against {cost_name}"
    reference = teacher.iloc[0]
    enough = students[students[score] >= KEPT[0] / 100 * reference[score]]
    order = ([cost, score], [True, False]) if len(enough) else ([score, cost], [False, True])
    student = (enough if len(enough) else students).sort_values(order[0], ascending=order[1]).iloc[0]
    named = len(students) > 1 and student["name"] != "student"
    who = f'The distilled student "{escape(student["name"])}"' if named else "The distilled student"
    kept = f"{100 * student[score] / reference[score]:.1f}% of {what}" if reference[score] else what
    text = f"{who} keeps {kept} with {100 * student[cost] / reference[cost]:.0f}% of the {cost_name}"
    twin = undistilled_twin(rows, student)
    if twin is not None and reference[score]:
        text += f"; without distillation {100 * twin[score] / reference[score]:.1f}%"
    return text if student["runs"] > 1 else f"{text} (one seed)"
