"""Score against how many pictures the student may learn from, with and without distillation."""

import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.plots.style import COLOURS, LABELS, SYMBOLS, axis_title, error_bars, figure
from dlip.records.compare import summary
from dlip.records.schema import ROLES


def data_curves(df: pd.DataFrame, score: str = "tr1", title: str | None = None) -> go.Figure:
    """A line for each role over the pictures it learned from (mean over seeds, bars of one standard deviation).

    df: runs of the grid `data`, as `dlip.experiments.ablation.runs` gives them; the teacher's become a line across.
    Raises UserError where no student has the score.
    """
    rows = summary(df.dropna(subset=[score]))
    students = rows[rows["role"] != "teacher"].sort_values("train_images")
    if students.empty:
        raise UserError(f"no run of the data has {score}; choose another score, or run dlip ablate data")
    fig = figure(title or _finding(students, score))
    for role, line in students.groupby("role", sort=False):
        fig.add_scatter(
            x=line["train_images"], y=line[score], mode="lines+markers", name=role, cliponaxis=False,
            legendrank=ROLES.index(role), line=dict(color=COLOURS[role], width=2),
            marker=dict(symbol=SYMBOLS[role], size=10), error_y=error_bars(line[f"{score}_sd"], role),
            hovertemplate=f"%{{x:,}} pictures<br>{axis_title(score)}: %{{y:.1f}}<extra>{role}</extra>",
        )  # fmt: skip
    for whole in rows.loc[rows["role"] == "teacher", score]:
        fig.add_hline(y=whole, line=dict(color=COLOURS["teacher"], width=1.5, dash="dot"), annotation_text="teacher",
                      annotation_position="top left")  # fmt: skip
    counts = students["train_images"].unique()
    fig.update_xaxes(
        title_text="pictures to learn from", type="log", tickvals=counts, ticktext=[f"{n:,}" for n in counts]
    )
    return fig.update_yaxes(title_text=axis_title(score))


def _finding(students: pd.DataFrame, score: str) -> str:
    """Where distillation adds most and least."""
    name = LABELS[score][0]
    by_role = students.pivot_table(index="train_images", columns="role", values=score)
    if not {"distilled", "undistilled"} <= set(by_role):
        return f"{name} by pictures to learn from"
    gain = (by_role["distilled"] - by_role["undistilled"]).dropna()
    if gain.empty:
        return f"{name} by pictures to learn from"
    ends = [f"most at {gain.idxmax():,} pictures ({gain.max():+.1f})"]
    ends += [f"least at {gain.idxmin():,} ({gain.min():+.1f})"] * (len(gain) > 1)
    return f"Distillation adds to {name} {', '.join(ends).replace('-', '−')}"
