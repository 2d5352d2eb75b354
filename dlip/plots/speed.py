"""How long models take, how much they do in a second, and the memory that they need."""

from html import escape

import plotly.graph_objects as go

from dlip.plots.style import COLOURS, INK, SYMBOLS, figure

PARTS = {"image": 0.55, "text": 0.7, "fusion": 0.85, "decoder": 1.0}
"""Module -> how bright its bar is, as a share of its model's colour."""
INSIDE = dict(textposition="inside", insidetextanchor="middle", textangle=0)
EVEN = (1.05 * 0.05) ** 0.5 - 0.05
"""Luminance of what white and black read on alike."""
SHOWN = dict(minsize=10, mode="hide")
"""Names of bars that are too narrow for them are left out."""


def latency_bars(models: dict[str, dict], roles: dict[str, str], title: str | None = None) -> go.Figure:
    """A bar a model, the medians of its modules one after another; beside them its p50 and p95 end to end as marks.

    models: name -> figures, "models" of `dlip.cost.latency.compare_latency`. roles: name -> role, for its colour.
    """
    fig, names = figure(title or _slowest(models)), [*map(escape, models)]
    for part, share in PARTS.items():
        spent = [one["modules"].get(part, {}).get("p50_ms") for one in models.values()]
        if any(spent):
            fig.add_bar(
                x=spent, y=names, orientation="h", name=part, width=0.5,
                **_filled([_shade(roles[name], share) for name in models]), text=[part] * len(names), **INSIDE,
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
    fig.update_layout(barmode="stack", legend_traceorder="normal", uniformtext=SHOWN)
    return fig.update_layout(height=170 + 80 * len(models))


def throughput_curves(
    batches: list[int], rates: dict[str, list[float]], roles: dict[str, str], title: str | None = None
) -> go.Figure:
    """Items a second against the size of the batch, a line a model; rates: as `dlip.cost.latency.throughput` gives
    them."""
    best = max(rates, key=lambda name: max(rates[name]))
    at = batches[rates[best].index(max(rates[best]))]
    fig = figure(title or f"At most {max(rates[best]):,.0f} a second: {escape(best)}, {at} at a time")
    for name, rate in rates.items():
        role = roles[name]
        fig.add_scatter(
            x=batches, y=rate, mode="lines+markers", name=escape(name), line=dict(color=COLOURS[role], width=2),
            marker=dict(symbol=SYMBOLS[role], size=9), cliponaxis=False,
            hovertemplate="batch of %{x}: %{y:,.1f} a second<extra>" + escape(name) + "</extra>",
        )  # fmt: skip
    fig.update_xaxes(title_text="batch (items at a time)", type="log", tickvals=batches)
    fig.update_yaxes(title_text="throughput (items a second)", rangemode="tozero")
    return fig.update_layout(height=360)


def memory_bars(memories: dict[str, dict], roles: dict[str, str], title: str | None = None) -> go.Figure:
    """A bar a model: its weights, and the task's peak on top of them, in MB.

    memories: name -> figures of `dlip.cost.memory.memory`; a peak of None is no bar.
    """
    whole = {name: one["weights_mb"] + (one["peak_mb"] or 0) for name, one in memories.items()}
    fig = figure(title or ", ".join(f"{escape(name)} {mb:,.1f} MB" for name, mb in whole.items()))
    for part, key, share in (("weights", "weights_mb", 1.0), ("peak on top", "peak_mb", 0.6)):
        fig.add_bar(
            x=[one[key] for one in memories.values()], y=[*map(escape, memories)], orientation="h", name=part,
            width=0.5, showlegend=False, text=[part] * len(memories), **INSIDE,
            **_filled([_shade(roles[name], share) for name in memories]),
            hovertemplate=f"%{{y}}, {part}: %{{x:.2f}} MB<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title_text="memory (MB of 1,000,000 bytes)", rangemode="tozero")
    fig.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    return fig.update_layout(barmode="stack", uniformtext=SHOWN, height=170 + 80 * len(memories))


def _shade(role: str, share: float) -> str:
    """A role's colour, darker."""
    return "#" + "".join(f"{round(share * int(COLOURS[role][i : i + 2], 16)):02x}" for i in (1, 3, 5))


def _filled(colours: list[str]) -> dict:
    """Bars of these colours, with names inside that can be read on them."""
    inks = ["#ffffff" if luminance(colour) < EVEN else "#000000" for colour in colours]
    return dict(marker=dict(color=colours, line=dict(color=INK, width=1)), insidetextfont_color=inks)


def luminance(colour: str) -> float:
    """Of "#rrggbb", 0 to 1, as WCAG 2 has it, whose contrast of two colours is (L1 + 0.05) / (L2 + 0.05)."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _slowest(models: dict[str, dict]) -> str:
    """Which module takes most of each model's time."""
    said = []
    for name, one in models.items():
        spent = {part: one["modules"][part]["p50_ms"] for part in PARTS if part in one["modules"]}
        part = max(spent, key=spent.get)
        said.append(f"{part} {100 * spent[part] / sum(spent.values()):.0f}% of {escape(name)}’s")
    return f"Most of the time goes to: {', '.join(said)}"
