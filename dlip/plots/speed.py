"""Latency, throughput and memory of models."""

from html import escape

import plotly.graph_objects as go
from PIL import ImageColor

from dlip.plots.style import COLORS, INK, SYMBOLS, figure

PARTS = {"image": 0.55, "text": 0.7, "fusion": 0.85, "decoder": 1.0}
"""Module -> brightness of its bar, as a share of its model's color."""
BAR_TEXT = dict(textposition="inside", insidetextanchor="middle", textangle=0)
EQUAL_CONTRAST = (1.05 * 0.05) ** 0.5 - 0.05
"""Luminance at which white and black text have the same contrast."""
HIDE_SMALL_TEXT = dict(minsize=10, mode="hide")
"""Bars too narrow for their text do not show it."""


def latency_bars(models: dict[str, dict], roles: dict[str, str]) -> go.Figure:
    """A bar per model, stacked from the medians of its modules, with marks for its p50 and p95 end to end.

    models: name -> figures, "models" of `dlip.cost.latency.compare_latency`. roles: name -> role, for the color.
    """
    fig, names = figure(_slowest(models)), [*map(escape, models)]
    for part, share in PARTS.items():
        spent = [one["modules"].get(part, {}).get("p50_ms") for one in models.values()]
        if any(spent):
            fig.add_bar(
                x=spent, y=names, orientation="h", name=part, width=0.5,
                **_filled([_shade(roles[name], share) for name in models]), text=[part] * len(names), **BAR_TEXT,
                hovertemplate=f"%{{y}}, {part}: %{{x:.2f}} ms<extra></extra>",
            )  # fmt: skip
    for key, symbol in (("p50_ms", "line-ns"), ("p95_ms", "line-ns-open")):
        label = key.removesuffix("_ms")
        fig.add_scatter(
            x=[one[key] for one in models.values()], y=names, mode="markers", name=f"{label} end to end",
            marker=dict(symbol=symbol, size=40, color=INK, line=dict(width=3 if key == "p50_ms" else 1, color=INK)),
            hovertemplate=f"%{{y}}, {label}: %{{x:.2f}} ms<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title_text="time (ms)", rangemode="tozero")
    fig.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    fig.update_layout(barmode="stack", legend_traceorder="normal", uniformtext=HIDE_SMALL_TEXT)
    return fig.update_layout(height=170 + 80 * len(models))


def throughput_curves(batches: list[int], rates: dict[str, list[float]], roles: dict[str, str]) -> go.Figure:
    """Items per second against batch size, a line per model. rates: as returned by `dlip.cost.latency.throughput`."""
    best = max(rates, key=lambda name: max(rates[name]))
    at = batches[rates[best].index(max(rates[best]))]
    fig = figure(f"At most {max(rates[best]):,.0f} items per second: {escape(best)} at batch size {at}")
    for name, rate in rates.items():
        role = roles[name]
        fig.add_scatter(
            x=batches, y=rate, mode="lines+markers", name=escape(name), line=dict(color=COLORS[role], width=2),
            marker=dict(symbol=SYMBOLS[role], size=9), cliponaxis=False,
            hovertemplate="batch size %{x}: %{y:,.1f} items per second<extra>" + escape(name) + "</extra>",
        )  # fmt: skip
    fig.update_xaxes(title_text="batch size", type="log", tickvals=batches)
    fig.update_yaxes(title_text="throughput (items per second)", rangemode="tozero")
    return fig.update_layout(height=360)


def memory_bars(memories: dict[str, dict], roles: dict[str, str]) -> go.Figure:
    """A bar per model: its weights, and the task's peak in addition, in MB.

    memories: name -> figures of `dlip.cost.memory.memory`; a peak of None draws no bar.
    """
    totals = {name: one["weights_mb"] + (one["peak_mb"] or 0) for name, one in memories.items()}
    fig = figure(", ".join(f"{escape(name)} {mb:,.1f} MB" for name, mb in totals.items()))
    for part, key, share in (("weights", "weights_mb", 1.0), ("additional peak", "peak_mb", 0.6)):
        fig.add_bar(
            x=[one[key] for one in memories.values()], y=[*map(escape, memories)], orientation="h", name=part,
            width=0.5, showlegend=False, text=[part] * len(memories), **BAR_TEXT,
            **_filled([_shade(roles[name], share) for name in memories]),
            hovertemplate=f"%{{y}}, {part}: %{{x:.2f}} MB<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title_text="memory (MB of 1,000,000 bytes)", rangemode="tozero")
    fig.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    return fig.update_layout(barmode="stack", uniformtext=HIDE_SMALL_TEXT, height=170 + 80 * len(memories))


def _shade(role: str, share: float) -> str:
    """A role's color, darkened."""
    return "#" + "".join(f"{round(share * channel):02x}" for channel in ImageColor.getrgb(COLORS[role]))


def _filled(colors: list[str]) -> dict:
    """Style of bars in these colors with readable text inside."""
    inks = ["#ffffff" if luminance(color) < EQUAL_CONTRAST else "#000000" for color in colors]
    return dict(marker=dict(color=colors, line=dict(color=INK, width=1)), insidetextfont_color=inks)


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb", 0 to 1, by WCAG 2 (contrast of two colors: (L1 + 0.05) / (L2 + 0.05))."""
    channels = [channel / 255 for channel in ImageColor.getrgb(color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _slowest(models: dict[str, dict]) -> str:
    """Which module takes most of each model's time."""
    slowest = []
    for name, one in models.items():
        spent = {part: one["modules"][part]["p50_ms"] for part in PARTS if part in one["modules"]}
        part = max(spent, key=spent.get)
        slowest.append(f"{part} {100 * spent[part] / sum(spent.values()):.0f}% of {escape(name)}’s")
    return f"Most of the time goes to: {', '.join(slowest)}"
