"""The losses of one run, term by term, while it learns and after."""

import plotly.graph_objects as go

from dlip.plots.losses import UNITS
from dlip.plots.style import INK, figure
from dlip.training.terms import GROUPS

SHADES = ("#E69F00", "#56B4E9", "#CC79A7", INK, "#7E57C2")
"""Of the terms of a group: Okabe and Ito's colours that no role has, and for the labels a violet."""
GAP = 0.08
"""Between panels, which have y axes of their own; 1 is the whole width."""


def term_curves(losses: dict[str, list[float]], steps: int | None = None, title: str | None = None) -> go.Figure:
    """A panel for each group of terms (`dlip.training.terms.GROUPS`), in it a line a term, unweighted, from 0 up.

    losses: as `dlip.training.run_folder.Run.losses` gives them, empty before the first row. steps: where the axis
    ends, by default at the last row.
    """
    groups = GROUPS | {"vlp": [*GROUPS["vlp"], "tags"]}
    panels = {name: [term for term in terms if term in losses] for name, terms in groups.items()}
    panels = {name: terms for name, terms in panels.items() if terms}
    fig = figure(title or _finding(losses, steps), max(1, len(panels)))
    width = (1 - GAP * (len(panels) - 1)) / max(1, len(panels))
    for column, (name, terms) in enumerate(panels.items(), 1):
        left = (column - 1) * (width + GAP)
        fig.update_xaxes(domain=[left, min(1, left + width)], col=column)
        for term, shade in zip(terms, SHADES, strict=False):
            fig.add_scatter(
                x=losses["step"], y=losses[term], mode="lines", line=dict(color=shade, width=2), showlegend=False,
                name=term, hovertemplate=f"{term}, step %{{x}}: %{{y:.3f}}<extra></extra>", row=1, col=column,
            )  # fmt: skip
        place = "" if column == 1 else column
        heads = [f"<span style='color: {s}'>■</span> {_short(term)}" for term, s in zip(terms, SHADES, strict=False)]
        lines = [
            f"<b>{name}</b> ({UNITS.get(name, 'nats')})",
            *(" ".join(heads[i : i + 2]) for i in range(0, len(heads), 2)),
        ]
        fig.add_annotation(
            text="<br>".join(lines), showarrow=False, align="left",
            xref=f"x{place} domain", yref=f"y{place} domain", x=0, y=1, xanchor="left", yanchor="bottom", yshift=6,
        )  # fmt: skip
    fig.update_xaxes(title_text="step", range=[0, steps] if steps else None, rangemode="tozero")
    fig.update_yaxes(matches=None, showticklabels=True, rangemode="tozero")
    return fig.update_layout(height=370, margin=dict(t=132))


def _short(term: str) -> str:
    """A term within its group's panel."""
    return term.partition(".")[2].replace("decoder_", "dec. ") or term


def _finding(losses: dict[str, list[float]], steps: int | None) -> str:
    if not losses.get("step"):
        return "The first steps are under way"
    whole = [all(value is not None for value in row) for row in zip(*losses.values(), strict=True)]
    start = whole.index(True) if any(whole) else -1  # before it, terms that join later are not in the sum
    first, last = losses["total"][start], losses["total"][-1]
    of = f" of {steps}" if steps else ""
    change = f"{'fallen' if last < first else 'risen'} from {first:.2f} to {last:.2f}"
    since = f", since all terms have joined by step {losses['step'][start]}" if start else ""
    return f"After {losses['step'][-1]}{of} steps the weighted sum has {change}{since}"
