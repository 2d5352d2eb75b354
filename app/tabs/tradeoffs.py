"""Trade-offs: the shipped records as score against cost, and the run behind each point."""

import json
from functools import cache
from html import escape
from typing import TypedDict

import gradio as gr
import pandas as pd
import plotly.graph_objects as go

from dlip.common.errors import UserError
from dlip.common.text import plural, three_digits
from dlip.data.answers import normalize
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.grids import GRIDS
from dlip.plots import LABELS, accuracy_cost, pareto, score_rows
from dlip.plots.style import axis_title
from dlip.records import frame
from dlip.records.compare import describe_test_sets, summary
from dlip.records.schema import COSTS, ROLES, SCORES, TABLE_SCORES
from dlip.records.write import SAMPLES

from .. import models
from ..endpoints import PAGE, QUICK, answered, api, checked, hint_of
from ..view import charts, parts
from .shipped import group_of, groups, records, records_of, table

SHOWN_SAMPLES = 4
AXES = tuple(column for column in COSTS if column not in ("latency_ms", "latency_p95_ms"))
"""Costs that runs can be compared by: milliseconds of different days, machines and threads cannot."""
SAME_COST = 1.05
"""If costs lie within this ratio, each run is a row of the chart instead of a point; in grids, those of students."""
MAIN_FIGURES = (*TABLE_SCORES, "pointing", "params_m", "flops_g", "latency_share")
"""Figures of a point that are shown without a click."""
PICKED_POINT = "() => document.querySelector(':is(#chart-of-runs, #chart-of-runs *)[data-picked]').dataset.picked"


class Point(TypedDict):
    """Runs of one name, all seeds together."""

    name: str
    role: str
    cost: float
    score: float
    score_sd: float | None
    """Standard deviation over seeds; null for a single run."""
    runs: int
    front: bool
    """Whether the point is on the Pareto front."""


class Run(TypedDict):
    """The run behind a point: its latest record, with scores averaged over seeds."""

    name: str
    role: str
    command: str
    config: dict
    seeds: list[int]
    train_images: int
    figures: dict[str, float]
    """Scores and costs by column of `dlip.records`, as far as they were measured."""
    samples: list[dict]
    """Outputs of the latest record that has some: image_id, caption, references, questions, answers, truth."""


@checked
def tradeoffs(group: str | None = None, cost: str = "params_m", score: str = "vqa_mean") -> list[Point]:
    """The shipped runs as points, cheapest first.

    group: the data that runs were measured on, as "scenes test, 1,000 images" (the default, the shipped models of
    scenes), or the name of a grid of `dlip ablate`. cost and score: columns of dlip.records, as params_m, flops_g,
    latency_share; ir1, facts_f1, vqa_mean, tr1, cider.
    """
    rows = _rows(group, cost, score)
    front = set(pareto(list(rows[cost]), list(rows[score])))
    return [
        Point(
            name=row["name"],
            role=row["role"],
            cost=float(row[cost]),
            score=float(row[score]),
            score_sd=None if pd.isna(sd := row[f"{score}_sd"]) else float(sd),
            runs=int(row["runs"]),
            front=i in front,
        )
        for i, row in rows.sort_values(cost).iterrows()
    ]


@checked
def run(name: str, group: str | None = None, cost: str = "params_m", score: str = "vqa_mean") -> Run:
    """The run behind a point of `tradeoffs`: configuration, command, figures, and samples of its outputs."""
    _check_axes(cost, score)
    runs = [record for record in records_of(group) if record["name"] == name]
    runs = [one for one, drawn in zip(runs, frame(runs)[[cost, score]].notna().all(axis=1), strict=True) if drawn]
    if not runs:
        raise UserError(f"there is no point {name!r} among these runs; choose one of the chart")
    runs, row = sorted(runs, key=lambda record: record["created"], reverse=True), summary(frame(runs)).iloc[-1]
    latest = runs[0]
    return Run(
        name=name,
        role=latest["role"],
        command=latest["command"],
        config=latest["config"],
        seeds=sorted({record["seed"] for record in runs}),
        train_images=latest["train_images"],
        figures={column: float(row[column]) for column in (*SCORES, *COSTS) if not pd.isna(row[column])},
        samples=next((record["samples"] for record in runs if record["samples"]), []),
    )


def _check_axes(cost: str, score: str) -> None:
    for column, columns in ((cost, AXES), (score, SCORES)):
        if column not in columns:
            raise UserError(f"{column!r} is not an axis of this chart; choose one of {', '.join(columns)}")


def _rows(group: str | None, cost: str, score: str) -> pd.DataFrame:
    _check_axes(cost, score)
    rows = summary(table(group).dropna(subset=[cost, score]))
    if rows.empty:
        raise UserError(f"none of these runs has both {cost} and {score}; choose other axes, or other runs")
    return rows


def description(points: list[Point], group: str | None = None) -> str:
    """What the points are, in a sentence."""
    (data, *_), runs = describe_test_sets(table(group)), sum(point["runs"] for point in points)
    text = f"{runs:,} of the {len(records()):,} runs that are shipped with this project, measured on {escape(data)}; "
    text += "click a point, or choose it by name."
    if group in GRIDS:
        text = f"{GRIDS[group].question} {text}"
    return parts.hint(text)


def show(run: Run, group: str | None = None) -> str:
    """A point's figures, command, configuration and samples."""
    teachers = _teacher_captions(group)
    figures = {
        name: (axis_title(name), f"{value:,.1f}" if name in SCORES else three_digits(value))
        for name, value in run["figures"].items()
    }
    return parts.render(
        "run.html",
        run=run,
        settings=_settings(run["config"]),
        config=json.dumps(run["config"], indent=1),
        seeds=plural(len(run["seeds"]), "seed"),
        train_images=plural(run["train_images"], "training image"),
        main=[figures[name] for name in MAIN_FIGURES if name in figures],
        rest=[figure for name, figure in figures.items() if name not in MAIN_FIGURES],
        samples=[_sample(sample, teachers) for sample in run["samples"][:SHOWN_SAMPLES]],
    )


def _settings(config: dict) -> list[tuple[str, str]]:
    """The settings in which runs differ, as pairs of name and value."""
    model, train = config.get("model") or {}, config.get("train") or {}
    settings = []
    for part in ("image", "text"):
        if f"{part}_layers" in model:
            settings.append((part, f"{plural(model[f'{part}_layers'], 'layer')}, {model[f'{part}_width']} wide"))
    settings += [
        ("backbone", model.get("image_backbone") or ""),
        ("cross-attention", f"in {len(model.get('fusion_layers') or ())} of the text layers"),
        ("initialized from", ", ".join(config.get("init_from") or ())),
        ("losses", ", ".join(f"{term} × {weight:g}" for term, weight in (train.get("weights") or {}).items())),
        *((name.replace("_", " "), f"{train[name]}") for name in ("steps", "batch_size", "lr") if name in train),
        ("teacher", str(config.get("teacher") or "")),
    ]
    return [(name, value) for name, value in settings if value]


def _sample(sample: dict, teachers: dict[int, str]) -> dict:
    """Values of a sample for run.html. teachers: as `_teacher_captions`."""
    image, alt = _sample_images().get(sample["image_id"]), (sample["references"] or [f"image {sample['image_id']}"])[0]
    answers = zip(sample["questions"], sample["answers"], sample["truth"], strict=False)
    return {
        "alt": alt,
        "image": None if image is None else parts.thumbnail(image, alt),
        "caption": sample["caption"] or "",
        "teacher": teachers.get(sample["image_id"]),
        "answers": [(*one, normalize(one[1]) == normalize(one[2])) for one in answers],
    }


@cache
def _sample_images() -> dict:
    """image_id -> the image of a sample."""
    data = Scenes("test", size=SAMPLES)
    return {item.image_id: item.image for item in map(data.__getitem__, range(SAMPLES))}


def _teacher_captions(group: str | None) -> dict[int, str]:
    """image_id -> caption of the group's latest teacher."""
    teachers = [record for record in records_of(group) if record["role"] == "teacher" and record["samples"]]
    latest = max(teachers, key=lambda record: record["created"], default={"samples": []})
    return {sample["image_id"]: sample["caption"] for sample in latest["samples"]}


def point_names(points: list[Point]) -> list[str]:
    """Names of the points: teachers first, then students, each by cost."""
    return [point["name"] for point in sorted(points, key=lambda point: ROLES.index(point["role"]) > 0)]


def chart_of(group: str | None, cost: str, score: str) -> go.Figure:
    """Score against cost, or a row for each run if all cost the same, in grids all students."""
    _check_axes(cost, score)
    fig = (accuracy_cost if _differ(group, cost) else score_rows)(table(group), cost, score)
    for trace in fig.select_traces(dict(hoverinfo="text")):  # without the command, which is shown below
        trace.hovertext = [text.partition("<br><i>")[0] for text in trace.hovertext]
    return fig


def axes(group: str | None, columns: tuple[str, ...]) -> list[tuple[str, str]]:
    """The columns that can be an axis of a group's chart, with their labels: those that its students have."""
    runs = table(group)
    runs = runs[runs["role"] != "teacher"] if (runs["role"] != "teacher").any() else runs
    return [(LABELS[column][0], column) for column in columns if runs[column].notna().any()]


def axis(group: str | None, columns: tuple[str, ...], chosen: str, label: str) -> gr.Dropdown:
    """The choice among columns of a group; the chosen one where the group has it, else the first."""
    choices = axes(group, columns)
    names = [column for _, column in choices]
    return gr.Dropdown(choices, value=chosen if chosen in names else names[0], label=label, min_width=180)


def _differ(group: str | None, cost: str) -> bool:
    """Whether runs of a group differ in a cost; of a grid, its students."""
    runs = table(group).dropna(subset=[cost])
    costs = runs.loc[runs["role"] != "teacher", cost] if group in GRIDS else runs[cost]
    return len(costs) < 2 or costs.max() > SAME_COST * costs.min()


def tab(image: gr.Image, names: tuple[gr.Dropdown, gr.Dropdown], subject: gr.Textbox) -> None:
    first = (group_of(models.defaults()[1]), "params_m", "vqa_mean")
    with gr.Row():
        group = gr.Dropdown(groups(), value=first[0], label="Runs", min_width=180)
        cost, score = axis(first[0], AXES, first[1], "Cost"), axis(first[0], SCORES, first[2], "Score")
    note, heading = gr.HTML(), charts.heading("runs")
    with gr.HTML(html_template="@children", js_on_load=charts.ON_POINT_CLICK, elem_id="chart-of-runs") as clickable:
        chart = gr.Plot(show_label=False, container=False, elem_id="runs")
    label = "A point of the chart"
    point = gr.Dropdown([], value=None, label=label, elem_id="point", allow_custom_value=True)
    shown = gr.HTML(elem_id="run")

    def update_axes(group, cost, score):
        return axis(group, AXES, cost, "Cost"), axis(group, SCORES, score, "Score")

    def draw(group, cost, score):
        points = tradeoffs(group, cost, score)
        title, fig = charts.responsive(chart_of(group, cost, score))
        return description(points, group), title, fig, gr.Dropdown(point_names(points), value=None), ""

    def show_point(point, group, cost, score):
        return show(run(point, group, cost, score), group) if point else ""

    chosen, quick = [group, cost, score], dict(show_progress="minimal", **QUICK, **PAGE)
    undrawn = answered(draw, lambda error: (hint_of(error), "", None, gr.skip(), ""))
    drawn = dict(fn=undrawn, inputs=chosen, outputs=[note, heading, chart, point, shown], **quick)
    gr.on([heading.parent.select, cost.input, score.input], **drawn)
    group.input(update_axes, chosen, [cost, score], **quick).then(**drawn)
    clicked = clickable.click(None, None, point, js=PICKED_POINT)
    for event in (clicked.then, point.input):
        event(answered(show_point), [point, *chosen], shown, **quick)
    api(tradeoffs)
    api(run)
