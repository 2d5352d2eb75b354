"""Loss curves by term."""

from collections import Counter
from html import escape

import numpy as np
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.plots.style import COLOURS, figure
from dlip.records.schema import ROLES

UNITS = {"hr": "1 − cosine", "total": "weighted sum"}
"""Family of loss terms -> unit of its loss; all others are in nats."""
FEW = 6
"""Lines of a role that are drawn in full; more are thinned."""


def loss_curves(records: list[dict], term: str, title: str | None = None) -> go.Figure:
    """One term's loss over the steps of training, unweighted, a line a run.

    records: as `dlip.records.read` gives them. Raises UserError where no run has the term.
    """
    runs = [record for record in records if term in record["losses"]]
    if not runs:
        raise UserError(f"no record has losses of {term!r}; choose one of {', '.join(terms(records)) or 'none'}")
    fig = figure(title or _loss_finding(runs, term))
    shown, lines = set(), Counter(record["role"] for record in runs)
    for record in sorted(runs, key=lambda record: -lines[record["role"]]):  # the fewest lie on top
        role, name = record["role"], escape(record["name"])
        fig.add_scatter(
            x=record["losses"]["step"], y=record["losses"][term], mode="lines",
            line=dict(color=COLOURS[role], width=1.5), opacity=0.9 if lines[role] <= FEW else 0.4,
            name=role, legendgroup=role, legendrank=ROLES.index(role), showlegend=role not in shown,
            hovertemplate=f"{name}, seed {record['seed']}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        shown.add(role)
    fig.update_xaxes(title_text="step")
    fig.update_yaxes(title_text=UNITS.get(term.split(".")[0], "nats"), rangemode="tozero")
    return fig


def terms(records: list[dict]) -> list[str]:
    """The loss terms of the records, each once, in the order in which they first stand."""
    return [*dict.fromkeys(term for record in records for term in record["losses"] if term != "step")]


def _loss_finding(runs: list[dict], term: str) -> str:
    """Where the curves end: the mean of the last tenth of their points, over seeds; the range where names differ."""
    ends = {role: {} for role in ROLES}  # role -> name -> losses
    for record in runs:
        values = [v for v in record["losses"][term] if v is not None]
        last = values[-max(1, len(values) // 10) :]
        ends[record["role"]].setdefault(record["name"], []).extend(last)
    said = []
    for role, losses in ends.items():
        means = sorted({f"{np.mean(values):.2f}" for values in losses.values() if values}, key=float)
        if means:
            said.append(f"{' to '.join([means[0], means[-1]][: len(means)])} {role}")
    return f"{escape(term)} ends at {', '.join(said)}"
