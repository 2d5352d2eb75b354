"""Figures of ablation grids: gains over a row, score against encoder size, score against training images."""

import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.common.text import mean_and_spread
from dlip.plots.style import COLORS, INK, LABELS, REFERENCE_LINE, SYMBOLS, axis_title, error_bars, figure, tint
from dlip.records.compare import summary
from dlip.records.schema import ROLES

DASHES = ("solid", "dash", "dot", "dashdot")
"""Line styles of the fixed encoders, in order of appearance."""


def gain_bars(df: pd.DataFrame, score: str = "tr1", base: str = "no distillation") -> go.Figure:
    """A bar per row with its interval, and the paper's gain as a diamond.

    df: as returned by `dlip.experiments.analysis.effects.gains`, in the order of the bars: name, role, gain, low, high,
    paper. base: description of the row that gains are measured from. Raises UserError if there is no row.
    """
    if df.empty:
        raise UserError("there are no gains to show; run the grid first")
    name, unit = LABELS[score]
    points = "percentage points" if unit == "%" else f"points, {unit}"
    fig = figure(_gain_finding(df, name, base))
    for role, some in df.groupby("role", sort=False):
        fig.add_bar(
            x=some["gain"], y=some["name"], orientation="h", name=role, width=0.62,
            marker=dict(color=tint(role), line=dict(color=COLORS[role], width=2)),
            error_x=dict(type="data", array=some["high"] - some["gain"], arrayminus=some["gain"] - some["low"],
                         color=INK, thickness=1.5, width=5),
            hoverinfo="text", hovertext=[f"{row['name']}: {_gain(row, 2)}" for _, row in some.iterrows()],
        )  # fmt: skip
    if df["paper"].notna().any():
        fig.add_scatter(
            x=df["paper"], y=df["name"], mode="markers", name="the paper, on its data",
            marker=dict(symbol="diamond-open", size=11, color=INK, line=dict(width=2)),
            hovertemplate="%{y}, the paper: %{x:+.1f}<extra></extra>",
        )  # fmt: skip
    fig.add_vline(x=0, line=dict(color=INK, width=1.5))
    fig.update_xaxes(title_text=f"gain in {name} over {base} ({points})", zeroline=False)
    fig.update_yaxes(autorange="reversed", ticks="", showgrid=False, categoryorder="array", categoryarray=df["name"])
    return fig.update_layout(height=190 + 38 * len(df), bargap=0.3)


def _gain_finding(df: pd.DataFrame, name: str, base: str) -> str:
    above, with_interval = (df["low"] > 0).sum(), df[df["low"].notna()]
    best = (df if with_interval.empty else with_interval).sort_values("gain").iloc[-1]  # a single seed has no interval
    what = "gains most from" if best["gain"] > 0 else "does not gain; it loses least from"
    text = f"{name[0].upper()}{name[1:]} {what} {best['name']}: {_gain(best, 1)} over {base}; "
    if with_interval.empty:
        return text + "too few seeds for an interval"
    return text + f"{above} of {len(df)} gains {'has' if above == 1 else 'have'} an interval above 0"


def _gain(row: pd.Series, digits: int) -> str:
    """A gain with its interval, if it has one."""
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"
    return f"{row['gain']:+.{digits}f}{interval}".replace("-", "−")


def module_curves(df: pd.DataFrame, score: str = "tr1") -> go.Figure:
    """A panel per swept encoder, in it a line per size of the other encoder, with and without distillation.

    df: as returned by `dlip.experiments.analysis.effects.sweeps`: role, swept, encoder_m, size, fixed, `score` and
    <score>_sd (standard deviation over seeds, drawn as bars); the teacher is a horizontal line. Raises UserError if no
    student has the score.
    """
    rows = df.dropna(subset=[score])
    students = rows[rows["role"] != "teacher"].sort_values("encoder_m")
    panels = [swept for swept in ("image", "text") if (students["swept"] == swept).any()]
    if not panels:
        raise UserError(f"no run of the grid modules has {score}; choose another score, or run dlip ablate modules")
    fig, shown = figure(_module_finding(students, score), len(panels)), set()
    dashes = dict(zip(df["fixed"].dropna().unique(), DASHES, strict=False))
    for column, swept in enumerate(panels, 1):
        panel = students[students["swept"] == swept]
        for (role, fixed), line in panel.groupby(["role", "fixed"], sort=False):
            name = f"{role}, the other encoder {fixed}"
            fig.add_scatter(
                x=line["encoder_m"], y=line[score], mode="lines+markers", name=name, legendgroup=name,
                showlegend=name not in shown, legendrank=10 * ROLES.index(role) + [*dashes].index(fixed),
                line=dict(color=COLORS[role], dash=dashes[fixed], width=2),
                marker=dict(symbol=SYMBOLS[role], size=9), error_y=error_bars(line[f"{score}_sd"], role),
                row=1, col=column, cliponaxis=False, hoverinfo="text+name",
                hovertext=[
                    f"{swept} encoder {row['size']}, {row['encoder_m']:.3g}M parameters<br>{axis_title(score)}: "
                    + mean_and_spread(row[score], row[f"{score}_sd"])
                    for _, row in line.iterrows()
                ],
            )  # fmt: skip
            shown.add(name)
        sizes = panel.groupby("size", sort=False)["encoder_m"].mean().reset_index()  # depends on the other encoder
        fig.update_xaxes(
            title_text=f"{swept} encoder (M parameters)", type="log", col=column, tickvals=sizes["encoder_m"],
            ticktext=[f"{size}<br>{m:.2g}" for size, m in zip(sizes["size"], sizes["encoder_m"], strict=True)],
        )  # fmt: skip
    for value in rows.loc[rows["role"] == "teacher", score]:
        fig.add_hline(y=value, line=REFERENCE_LINE, row=1, col="all")
        fig.add_annotation(
            text="teacher", x=0, xref="x domain", y=value, showarrow=False,
            xanchor="left", yanchor="bottom",
        )  # fmt: skip
    fig.update_yaxes(title_text=axis_title(score), col=1)
    return fig.update_layout(margin=dict(t=124, b=72), height=500)


def _module_finding(students: pd.DataFrame, score: str) -> str:
    """Score of the smallest encoder minus that of the largest, averaged over the shared sizes of the other encoder."""
    parts = []
    for swept, panel in students.groupby("swept"):
        lost = []
        for role in ROLES[1:]:
            runs = panel[panel["role"] == role]
            sizes = runs.groupby("size")["encoder_m"].mean().sort_values().index  # depends on the other encoder
            if len(sizes) > 1:
                by_size = runs.pivot_table(index="fixed", columns="size", values=score)
                gap = (by_size[sizes[0]] - by_size[sizes[-1]]).dropna()
                lost += [] if gap.empty else [f"{gap.mean():+.1f}".replace("-", "−") + f" {role}"]
        parts += [f"{swept} encoder {', '.join(lost)}"] * bool(lost)
    if not parts:
        return f"{LABELS[score][0]} by the size of an encoder"
    return f"{LABELS[score][0]} of the smallest encoder minus the largest: {'; '.join(parts)}"


def data_curves(df: pd.DataFrame, score: str = "tr1") -> go.Figure:
    """A line per role over the number of training images (mean over seeds, bars of one standard deviation).

    df: runs of the grid `data`, as returned by `dlip.experiments.ablation.runs`; the teacher is a horizontal line.
    Raises UserError if no student has the score.
    """
    rows = summary(df.dropna(subset=[score]))
    students = rows[rows["role"] != "teacher"].sort_values("train_images")
    if students.empty:
        raise UserError(f"no run of the grid data has {score}; choose another score, or run dlip ablate data")
    fig = figure(_data_finding(students, score))
    for role, line in students.groupby("role", sort=False):
        fig.add_scatter(
            x=line["train_images"], y=line[score], mode="lines+markers", name=role, cliponaxis=False,
            legendrank=ROLES.index(role), line=dict(color=COLORS[role], width=2),
            marker=dict(symbol=SYMBOLS[role], size=10), error_y=error_bars(line[f"{score}_sd"], role),
            hovertemplate=f"%{{x:,}} training images<br>{axis_title(score)}: %{{y:.1f}}<extra>{role}</extra>",
        )  # fmt: skip
    for value in rows.loc[rows["role"] == "teacher", score]:
        fig.add_hline(y=value, line=REFERENCE_LINE, annotation_text="teacher", annotation_position="top left")
    counts = students["train_images"].unique()
    fig.update_xaxes(title_text="training images", type="log", tickvals=counts, ticktext=[f"{n:,}" for n in counts])
    return fig.update_yaxes(title_text=axis_title(score))


def _data_finding(students: pd.DataFrame, score: str) -> str:
    """Where distillation adds most and least."""
    name = LABELS[score][0]
    by_role = students.pivot_table(index="train_images", columns="role", values=score)
    if not {"distilled", "undistilled"} <= set(by_role):
        return f"{name} by training images"
    gain = (by_role["distilled"] - by_role["undistilled"]).dropna()
    if gain.empty:
        return f"{name} by training images"
    most, least = (f"at {images:,} images ({gain[images]:+.1f})" for images in (gain.idxmax(), gain.idxmin()))
    where = most if len(gain) == 1 else f"most {most}, least {least.replace(' images', '')}"
    return f"Distillation adds to {name} {where.replace('-', '−')}"
