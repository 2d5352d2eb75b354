"""Loss curves: one term over many runs, all terms of one run."""

from collections import Counter
from html import escape

import numpy as np
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.losses import TERMS
from dlip.plots.style import COLORS, INK, figure
from dlip.records.schema import ROLES

UNITS = {"hr": "1 − cosine", "total": "weighted sum"}
"""Group of loss terms -> unit; all others are in nats."""
MAX_OPAQUE = 6
"""Up to how many lines of a role are opaque."""
SHADES = ("#E69F00", "#56B4E9", "#CC79A7", INK, "#7E57C2")
"""Colors of the terms of a group: those of Okabe and Ito that no role has, and a violet for the tags."""
GAP = 0.08
"""Space between panels, as a share of the width of the figure."""
Curve = tuple[dict, list[int], list[float | None]]
"""A record with the steps and values of a line."""


def loss_curves(records: list[dict], term: str) -> go.Figure:
    """One unweighted loss term over the steps of training, a line per run.

    records: as returned by `dlip.records.read`. Raises UserError if no run has the term.
    """
    runs = [record for record in records if term in record["losses"]]
    if not runs:
        raise UserError(f"no record has losses of {term!r}; choose one of {', '.join(terms(records)) or 'none'}")
    curves = [(record, record["losses"]["step"], record["losses"][term]) for record in runs]
    fig = figure(f"{escape(term)} ends at {ends_by_role(curves, '.2f')}")
    add_runs(fig, curves, "%{y:.3f}")
    fig.update_yaxes(title_text=UNITS.get(term.split(".")[0], "nats"), rangemode="tozero")
    return fig


def terms(records: list[dict]) -> list[str]:
    """The loss terms of the records, each once, in order of appearance."""
    return [*dict.fromkeys(term for record in records for term in record["losses"] if term != "step")]


def add_runs(fig: go.Figure, curves: list[Curve], hover: str, mode: str = "lines") -> None:
    """Add a line per run over the steps of training, in the color of its role. hover: template of a value."""
    shown, lines = set(), Counter(record["role"] for record, _, _ in curves)
    for record, steps, values in sorted(curves, key=lambda curve: -lines[curve[0]["role"]]):  # the rarest role on top
        role, name = record["role"], escape(record["name"])
        fig.add_scatter(
            x=steps, y=values, mode=mode, line=dict(color=COLORS[role], width=1.5),
            opacity=0.9 if lines[role] <= MAX_OPAQUE else 0.4,
            name=role, legendgroup=role, legendrank=ROLES.index(role), showlegend=role not in shown,
            hovertemplate=f"{name}, seed {record['seed']}<br>step %{{x}}: {hover}<extra></extra>",
        )  # fmt: skip
        shown.add(role)
    fig.update_xaxes(title_text="step")


def ends_by_role(curves: list[Curve], digits: str, unit: str = "") -> str:
    """Final value by role: mean of the last tenth of the points over seeds, as a range if there are several names."""
    ends = {role: {} for role in ROLES}  # role -> name -> values
    for record, _, values in curves:
        values = [v for v in values if v is not None]
        last = values[-max(1, len(values) // 10) :]
        ends[record["role"]].setdefault(record["name"], []).extend(last)
    finals = []
    for role, of_name in ends.items():
        means = sorted({format(np.mean(values), digits) for values in of_name.values() if values}, key=float)
        if means:
            finals.append(f"{' to '.join([means[0], means[-1]][: len(means)])}{unit} {role}")
    return ", ".join(finals)


def term_curves(losses: dict[str, list[float]], steps: int | None = None) -> go.Figure:
    """A panel per group of loss terms (`dlip.training.weights.groups`), in it a line per unweighted term.

    losses: as returned by `dlip.training.run_folder.Run.losses`, empty before the first row. steps: end of the x axis;
    by default the last row.
    """
    panels = {}
    for term in sorted(losses.keys() & TERMS.keys(), key=list(TERMS).index):
        own = "vlp" if not TERMS[term].distills else term
        panels.setdefault(TERMS[term].group or own, []).append(term)
    fig = figure(_term_finding(losses, steps), max(1, len(panels)), GAP)
    for column, (name, terms) in enumerate(panels.items(), 1):
        for term, shade in zip(terms, SHADES, strict=False):
            fig.add_scatter(
                x=losses["step"], y=losses[term], mode="lines", line=dict(color=shade, width=2), showlegend=False,
                name=term, hovertemplate=f"{term}, step %{{x}}: %{{y:.3f}}<extra></extra>", row=1, col=column,
            )  # fmt: skip
        heads = [f"<span style='color: {s}'>■</span> {_short(term)}" for term, s in zip(terms, SHADES, strict=False)]
        lines = [
            f"<b>{name}</b> ({UNITS.get(name, 'nats')})",
            *(" ".join(heads[i : i + 2]) for i in range(0, len(heads), 2)),
        ]
        fig.add_annotation(
            text="<br>".join(lines), showarrow=False, align="left",
            xref="x domain", yref="y domain", x=0, y=1, xanchor="left", yanchor="bottom", yshift=6, row=1, col=column,
        )  # fmt: skip
    fig.update_xaxes(title_text="step", range=[0, steps] if steps else None, rangemode="tozero")
    fig.update_yaxes(matches=None, showticklabels=True, rangemode="tozero")
    return fig.update_layout(height=370, margin=dict(t=132))


def _short(term: str) -> str:
    """A term's name without its group."""
    return term.partition(".")[2].replace("decoder_", "dec. ") or term


def _term_finding(losses: dict[str, list[float]], steps: int | None) -> str:
    if not losses.get("step"):
        return "The first steps are running"
    complete = [all(value is not None for value in row) for row in zip(*losses.values(), strict=True)]
    start = complete.index(True) if any(complete) else -1  # terms that join later are not in the sum before
    first, last = losses["total"][start], losses["total"][-1]
    step = losses["step"][-1]
    after = f"After {step:,} of {plural(steps, 'step')}" if steps else f"After {plural(step, 'step')}"
    if last == first:  # of a single row too
        return f"{after} the weighted sum is {last:.2f}"
    change = f"{'fallen' if last < first else 'risen'} from {first:.2f} to {last:.2f}"
    since = f", since all terms joined at step {losses['step'][start]}" if start else ""
    return f"{after} the weighted sum has {change}{since}"
