"""Learning curves: scores of students during training beside their teacher's."""

import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.plots.losses import add_runs, ends_by_role
from dlip.plots.style import LABELS, REFERENCE_LINE, axis_title, figure
from dlip.records.evaluations import percent

HEADROOM = 1.15
"""Top of the y axis over the highest value."""


def learning_curves(records: list[dict], score: str) -> go.Figure:
    """A score over the steps of training in percent of the teacher's, a line per run; 100 is marked.

    records: as returned by `dlip.records.read`. score: a column of `dlip.records.load`. A run without a teacher is
    compared with the teacher of a run that was evaluated on the same images; if there is none, it is skipped. Where no
    run has a teacher, the scores are shown as they are. Raises UserError if no run has the score.
    """
    runs = [record for record in records if score in learned_scores([record])]
    if not runs:
        choices = ", ".join(learned_scores(records)) or "none"
        raise UserError(f"no record has evaluations of {score!r} during training; choose one of {choices}")
    taught = [record for record in reversed(runs) if record["evaluations"]["teacher"].get(score)]
    levels = {_images(record): record["evaluations"]["teacher"][score] for record in taught}  # the first one's counts
    curves = []
    for record in runs:
        scores = record["evaluations"]["scores"]
        level = record["evaluations"]["teacher"].get(score) or levels.get(_images(record))
        if level or not levels:
            curves.append((record, scores["step"], percent(scores[score], level or 100)))
    unit = "%" if levels else ""
    fig = figure(f"{LABELS[score][0]} ends at {ends_by_role(curves, '.0f' if levels else '.1f', unit)}")
    add_runs(fig, curves, f"%{{y:.1f}}{unit}", "lines+markers")
    tops = [value for _, _, values in curves for value in values if value is not None]
    if levels:
        fig.add_hline(y=100, line=REFERENCE_LINE, annotation_text="teacher", annotation_position="top left")
        tops.append(100)
    fig.update_xaxes(rangemode="tozero")
    return fig.update_yaxes(
        title_text="% of the teacher's" if levels else axis_title(score), range=[0, HEADROOM * max(tops)]
    )


def learned_scores(records: list[dict]) -> list[str]:
    """The scores of evaluations during training in the records, each once, in order of appearance."""
    found = [record["evaluations"]["scores"] for record in records if record.get("evaluations")]
    return [*dict.fromkeys(score for scores in found for score in scores if score != "step")]


def _images(record: dict) -> tuple:
    """What identifies the images of a record's evaluations."""
    evaluations = record["evaluations"]
    return evaluations["data"], evaluations["split"], evaluations["images"]
