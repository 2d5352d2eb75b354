"""Score against the size of one encoder, the other fixed."""

import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.plots.style import COLOURS, LABELS, SYMBOLS, axis_title, error_bars, figure
from dlip.records.schema import ROLES

DASHES = ("solid", "dash", "dot", "dashdot")
"""Of the fixed encoders, in the order in which they first stand."""


def module_curves(df: pd.DataFrame, score: str = "tr1", title: str | None = None) -> go.Figure:
    """A panel for each encoder that is swept, in it a line for each size of the other, with and without distillation.

    df: as `dlip.experiments.effects.sweeps` gives it: role, swept, encoder_m, size, fixed, `score` and <score>_sd
    (standard
    deviation over seeds, drawn as bars); a teacher's row becomes a line across. Raises UserError where no student has
    the score.
    """
    rows = df.dropna(subset=[score])
    students = rows[rows["role"] != "teacher"].sort_values("encoder_m")
    panels = [swept for swept in ("image", "text") if (students["swept"] == swept).any()]
    if not panels:
        raise UserError(f"no run of the modules has {score}; choose another score, or run dlip ablate modules")
    fig, shown = figure(title or _finding(students, score), len(panels)), set()
    dashes = dict(zip(df["fixed"].dropna().unique(), DASHES, strict=False))
    for column, swept in enumerate(panels, 1):
        panel = students[students["swept"] == swept]
        for (role, fixed), line in panel.groupby(["role", "fixed"], sort=False):
            name = f"{role}, the other encoder {fixed}"
            fig.add_scatter(
                x=line["encoder_m"], y=line[score], mode="lines+markers", name=name, legendgroup=name,
                showlegend=name not in shown, legendrank=10 * ROLES.index(role) + [*dashes].index(fixed),
                line=dict(color=COLOURS[role], dash=dashes[fixed], width=2),
                marker=dict(symbol=SYMBOLS[role], size=9), error_y=error_bars(line[f"{score}_sd"], role),
                customdata=line[["size", f"{score}_sd"]], row=1, col=column, cliponaxis=False,
                hovertemplate=f"{swept} encoder %{{customdata[0]}}, %{{x:.3g}}M parameters<br>{axis_title(score)}: "
                f"%{{y:.1f}} ± %{{customdata[1]:.1f}}<extra>{name}</extra>",
            )  # fmt: skip
            shown.add(name)
        sizes = panel.groupby("size", sort=False)["encoder_m"].mean().reset_index()  # varies with the other
        fig.update_xaxes(
            title_text=f"{swept} encoder (M parameters)", type="log", col=column, tickvals=sizes["encoder_m"],
            ticktext=[f"{size}<br>{m:.2g}" for size, m in zip(sizes["size"], sizes["encoder_m"], strict=True)],
        )  # fmt: skip
    for whole in rows.loc[rows["role"] == "teacher", score]:
        line = dict(color=COLOURS["teacher"], width=1.5, dash="dot")
        fig.add_hline(y=whole, line=line, row=1, col="all")
        fig.add_annotation(
            text="teacher", x=0, xref="x domain", y=whole, showarrow=False,
            xanchor="left", yanchor="bottom",
        )  # fmt: skip
    fig.update_yaxes(title_text=axis_title(score), col=1)
    return fig.update_layout(margin=dict(t=124, b=72), height=500)


def _finding(students: pd.DataFrame, score: str) -> str:
    """What the smallest encoder loses against the largest, the mean over those sizes of the other that both have."""
    said = []
    for swept, panel in students.groupby("swept"):
        lost = []
        for role in ROLES[1:]:
            mine = panel[panel["role"] == role]
            sizes = mine.groupby("size")["encoder_m"].mean().sort_values().index  # an encoder's varies with the other's
            if len(sizes) > 1:
                by_size = mine.pivot_table(index="fixed", columns="size", values=score)
                lost.append(f"{(by_size[sizes[0]] - by_size[sizes[-1]]).mean():+.1f} {role}")
        said += [f"{swept} encoder {', '.join(lost)}"] * bool(lost)
    if not said:
        return f"{LABELS[score][0]} by the size of an encoder"
    text = f"{LABELS[score][0]} of the smallest encoder less the largest: {'; '.join(said)}"
    return text.replace("-", "−")
