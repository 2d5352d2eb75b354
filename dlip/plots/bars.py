"""Gains over a row of a grid, with their intervals."""

import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.plots.style import COLOURS, INK, LABELS, figure, tint


def gain_bars(
    df: pd.DataFrame, score: str = "tr1", base: str = "no distillation", title: str | None = None
) -> go.Figure:
    """A bar for each row, with its interval; the paper's gain beside it as a diamond where there is one.

    df: as `dlip.experiments.effects.gains` gives it, in the order of the bars: name, role, gain, low, high, paper.
    base: what the gains are over, in words. Raises UserError where there is no row.
    """
    if df.empty:
        raise UserError("there are no gains to show; run the grid first")
    name, unit = LABELS[score]
    points = "percentage points" if unit == "%" else f"points, {unit}"
    fig = figure(title or _finding(df, name, base))
    for role, some in df.groupby("role", sort=False):
        fig.add_bar(
            x=some["gain"], y=some["name"], orientation="h", name=role, width=0.62,
            marker=dict(color=tint(role), line=dict(color=COLOURS[role], width=2)),
            error_x=dict(type="data", array=some["high"] - some["gain"], arrayminus=some["gain"] - some["low"],
                         color=INK, thickness=1.5, width=5),
            customdata=some[["low", "high"]],
            hovertemplate="%{y}: %{x:+.2f} [%{customdata[0]:+.2f}, %{customdata[1]:+.2f}]<extra></extra>",
        )  # fmt: skip
    if df["paper"].notna().any():
        fig.add_scatter(
            x=df["paper"], y=df["name"], mode="markers", name="the paper's, on its data",
            marker=dict(symbol="diamond-open", size=11, color=INK, line=dict(width=2)),
            hovertemplate="%{y}, the paper: %{x:+.1f}<extra></extra>",
        )  # fmt: skip
    fig.add_vline(x=0, line=dict(color=INK, width=1.5))
    fig.update_xaxes(title_text=f"gain in {name} over {base} ({points})", zeroline=False)
    fig.update_yaxes(autorange="reversed", ticks="", showgrid=False, categoryorder="array", categoryarray=df["name"])
    return fig.update_layout(height=190 + 38 * len(df), bargap=0.3)


def _finding(df: pd.DataFrame, name: str, base: str) -> str:
    sure, known = (df["low"] > 0).sum(), df[df["low"].notna()]
    best = (df if known.empty else known).sort_values("gain").iloc[-1]  # a single seed has no interval
    figures = [f"{best['gain']:+.1f}"]
    figures += [] if pd.isna(best["low"]) else [f"[{best['low']:+.1f}, {best['high']:+.1f}]"]
    what = "gains most from" if best["gain"] > 0 else "gains from no row; it loses least from"
    text = f"{name} {what} {best['name']}: {' '.join(figures).replace('-', '−')} over {base}; "
    return text + f"{sure} of {len(df)} gains {'has' if sure == 1 else 'have'} an interval above 0"
