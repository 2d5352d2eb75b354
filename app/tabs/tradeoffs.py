"""Trade-offs: the shipped records as score against cost, and what is behind each point."""

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
from dlip.evaluation.disagreement import items_of
from dlip.experiments.grids import GRIDS
from dlip.plots import LABELS, accuracy_cost, pareto, score_rows
from dlip.plots.html import mark_differences
from dlip.plots.style import axis_title
from dlip.records import frame
from dlip.records.compare import describe_test_sets, summary
from dlip.records.schema import COSTS, ROLES, SCORES
from dlip.records.write import SAMPLES

from .. import events, inputs
from ..view import charts, parts
from .shipped import MAIN, RESULTS, chosen, groups, shipped, table

SHOWN = 4
"""Samples of a point that are shown."""
AXES = tuple(column for column in COSTS if column not in ("latency_ms", "latency_p95_ms"))
"""Costs that runs can be compared by: milliseconds of different days, machines and threads cannot."""
ALIKE = 1.05
"""Costs within this ratio are one: such runs are told apart by their scores, below each other."""
FIRST = ("tr1", "ir1", "cider", "vqa", "pointing", "params_m", "flops_g", "latency_share")
"""Figures of a point that are shown at once."""
HEAR = """
new MutationObserver(() => {
    const chart = element.querySelector(".js-plotly-plot");
    if (!chart || !chart.on || chart.heard === chart.on) return;
    chart.heard = chart.on;
    chart.on("plotly_click", event => {
        const name = event.points[0].customdata;
        if (!name) return;
        element.dataset.picked = name;
        trigger("click");
    });
}).observe(element, {childList: true, subtree: true});
"""
"""Clicks on a chart's points, which gradio does not tell of: `HEARD` has the name of the last one."""
HEARD = "() => document.querySelector(':is(#chart-of-runs, #chart-of-runs *)[data-picked]').dataset.picked"


class Point(TypedDict):
    """Runs of one name, all seeds of it."""

    name: str
    role: str
    cost: float
    score: float
    score_sd: float | None
    """Standard deviation over seeds; null of a single run."""
    runs: int
    front: bool
    """Whether no other point costs no more and scores no less, and is better in one of them."""


class Run(TypedDict):
    """What is behind a point: the latest of its runs, and its scores' means over seeds."""

    name: str
    role: str
    command: str
    config: dict
    seeds: list[int]
    train_images: int
    figures: dict[str, float]
    """Scores and costs by column, as in dlip.records; those that were measured."""
    samples: list[dict]
    """Examples of the latest words that were kept: image_id, caption, references, questions, answers, truth."""


# --- what is done -----------------------------------------------------------------------------------------------------


@inputs.checked
def tradeoffs(group: str = MAIN, cost: str = "params_m", score: str = "vqa") -> list[Point]:
    """The shipped runs as points, cheapest first.

    group: "playground", the shipped models and their like, the name of a grid of `dlip ablate`, or what other runs
    were measured on, as "scenes test-5k, 5,000 images". cost and score: columns of dlip.records, as params_m,
    flops_g, latency_share; tr1, ir1, cider, vqa.
    """
    rows = _rows(group, cost, score)
    front = set(pareto(list(rows[cost]), list(rows[score])))
    return [
        Point(name=row["name"], role=row["role"], cost=float(row[cost]), score=float(row[score]), runs=int(row["runs"]),
              score_sd=_number(row[f"{score}_sd"]), front=i in front)
        for i, row in rows.sort_values(cost).iterrows()
    ]  # fmt: skip


@inputs.checked
def run(name: str, group: str = MAIN) -> Run:
    """What is behind a point of `tradeoffs`: configuration, command, figures, and examples of its words."""
    mine = [record for record in chosen(group) if record["name"] == name]
    if not mine:
        raise UserError(f"there is no point {name!r} in {group}; choose one of the chart")
    latest, row = sorted(mine, key=lambda record: record["created"], reverse=True), summary(frame(mine)).iloc[-1]
    last = latest[0]
    figures = {column: float(row[column]) for column in (*SCORES, *COSTS) if not pd.isna(row[column])}
    return Run(
        name=name, role=last["role"], command=last["command"], config=last["config"], figures=figures,
        seeds=sorted({record["seed"] for record in mine}), train_images=last["train_images"],
        samples=next((record["samples"] for record in latest if record["samples"]), []),
    )  # fmt: skip


def _rows(group: str, cost: str, score: str) -> pd.DataFrame:
    for column, axis in ((cost, AXES), (score, SCORES)):
        if column not in axis:
            raise UserError(f"{column!r} cannot be an axis here; choose one of {', '.join(axis)}")
    found = table(group)
    rows = summary(found.dropna(subset=[cost, score])) if len(found) else found
    if rows.empty:
        raise UserError(f"no run of {group} has both {cost} and {score}; choose other axes, or other runs")
    return rows


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


# --- what is shown ----------------------------------------------------------------------------------------------------


def origin(points: list[Point], group: str = MAIN) -> str:
    """What the points are made of, in a sentence."""
    (on, *_), runs = describe_test_sets(table(group)), sum(point["runs"] for point in points)
    count = f"{runs:,} of the {len(shipped()):,} runs that are shipped with this project, measured on {escape(on)}; "
    count += "click a point, or choose it by name."
    if group in GRIDS:
        count = f"{GRIDS[group].question} {count} Pictures and texts are found by contrast (ITC) alone."
    if any(RESULTS.glob("*.jsonl")):
        return parts.hint(count)
    return parts.hint(
        f"{count} This installation has no folder results: only the built-in models’ own records are shown."
    )


def show(of: Run) -> str:
    """A point's figures, command, configuration and words."""
    first = "".join(_figure(name, of["figures"][name]) for name in FIRST if name in of["figures"])
    rest = "".join(_figure(name, value) for name, value in of["figures"].items() if name not in FIRST)
    seeds = f"{plural(len(of['seeds']), 'seed')}, {plural(of['train_images'], 'picture')} to learn from"
    config = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in _settings(of["config"]))
    whole = f"<pre>{escape(json.dumps(of['config'], indent=1))}</pre>"
    return (
        f'<section class="run card {of["role"]}"><header><b>{escape(of["name"])}</b> {of["role"]}, {seeds}</header>'
        f'<code>{escape(of["command"])}</code><div class="tables">'
        f"<div><table>{first}</table><details><summary>All figures</summary><table>{rest}</table></details></div>"
        f"<div><table>{config}</table><details><summary>Whole configuration</summary>{whole}</details></div></div>"
        f'<div class="samples">{_samples(of["samples"])}</div></section>'
    )


def _figure(name: str, value: float) -> str:
    shown = f"{value:,.1f}" if name in SCORES else three_digits(value)
    return f"<tr><td>{axis_title(name)}</td><td>{shown}</td></tr>"


def _settings(config: dict) -> list[tuple[str, str]]:
    """What tells a run from another, in words."""
    model, train = config.get("model") or {}, config.get("train") or {}
    found = [
        (part, f"{model[f'{part}_layers']} layers, {model[f'{part}_width']} wide")
        for part in ("image", "text") if f"{part}_layers" in model
    ]  # fmt: skip
    found += [("cross-attention", f"in {len(model.get('fusion_layers') or ())} of the text layers")]
    found += [("begins at", ", ".join(config.get("start") or ()))]
    found += [("losses", ", ".join(f"{term} × {weight:g}" for term, weight in (train.get("weights") or {}).items()))]
    found += [(name.replace("_", " "), f"{train[name]}") for name in ("steps", "batch_size", "lr") if name in train]
    found += [("teacher", str(config["teacher"]))] if config.get("teacher") else []
    return [(name, value) for name, value in found if value]


def _samples(samples: list[dict]) -> str:
    if not samples:
        return '<p class="hint">This run’s record holds no examples of its words.</p>'
    pictures, reference = _pictures(), _teachers()
    out = []
    for sample in samples[:SHOWN]:
        image = pictures.get(sample["image_id"])
        about = (sample["references"] or [f"picture {sample['image_id']}"])[0]
        asked = list(zip(sample["questions"], sample["answers"], sample["truth"], strict=False))
        told = ""
        for question, answer, truth in asked:
            wrong = f" (true: {escape(truth)})" * (normalize(answer) != normalize(truth))
            told += f"<li>{escape(question)} <b>{escape(answer)}</b>{wrong}</li>"
        caption = mark_differences(sample["caption"] or "", reference.get(sample["image_id"]))
        seen = f'<p class="hint">of: {escape(about)}</p>' if image is None else parts.picture(image, about)
        told = f"<details><summary>{plural(len(asked), 'question')}</summary><ul>{told}</ul></details>" if asked else ""
        out.append(f"<article>{seen}<div><p>{caption}</p>{told}</div></article>")
    return "".join(out)


@cache
def _pictures() -> dict:
    """image_id -> the picture that samples are of."""
    data = Scenes("test", size=SAMPLES)
    return {i: item.image for i, item in items_of(data, [data[k].image_id for k in range(SAMPLES)]).items()}


def _teachers() -> dict[int, str]:
    """image_id -> what the latest teacher says of it."""
    made = [record for record in chosen(MAIN) if record["role"] == "teacher" and record["samples"]]
    last = max(made, key=lambda record: record["created"], default={"samples": []})
    return {sample["image_id"]: sample["caption"] for sample in last["samples"]}


def listed(group: str, cost: str, score: str) -> list[str]:
    """The points by name: teachers first, then students, each group by cost."""
    points = tradeoffs(group, cost, score)
    return [point["name"] for point in sorted(points, key=lambda point: ROLES.index(point["role"]) > 0)]


# --- the tab ----------------------------------------------------------------------------------------------------------


def chart_of(group: str, cost: str, score: str) -> go.Figure:
    """Score against cost, or where all students cost the same a row for each; a point's command is told below."""
    found, rows = table(group), _rows(group, cost, score)
    costs = rows.loc[rows["role"] != "teacher", cost]
    alike = len(costs) > 1 and costs.max() <= ALIKE * costs.min()
    fig = (score_rows if alike else accuracy_cost)(found, cost, score)
    for trace in fig.select_traces(dict(hoverinfo="text")):
        trace.hovertext = [said.partition("<br><i>")[0] for said in trace.hovertext]
    return fig


def axes(group: str, of: tuple[str, ...]) -> list[tuple[str, str]]:
    """What can be an axis of a group's chart: its label and its column."""
    found = table(group)
    return [(LABELS[column][0], column) for column in of if found[column].notna().any()]


def tab(names: tuple[gr.Dropdown, gr.Dropdown], picture: gr.Image) -> None:
    first = (MAIN, "params_m", "vqa")
    with gr.Row():
        group = gr.Dropdown(groups(), value=MAIN, label="Runs", min_width=180)
        cost = gr.Dropdown(axes(MAIN, AXES), value=first[1], label="Cost", min_width=180)
        score = gr.Dropdown(axes(MAIN, SCORES), value=first[2], label="Score", min_width=180)
    note = gr.HTML(origin(tradeoffs(*first)))
    finding = charts.finding("runs")
    with gr.HTML(html_template="@children", js_on_load=HEAR, elem_id="chart-of-runs") as heard:
        chart = gr.Plot(show_label=False, container=False, elem_id="runs")
    point = gr.Dropdown(listed(*first), value=None, label="A point of the chart", elem_id="point")
    point.preprocess = lambda name: name  # `run` refuses what is none; gradio would after it has forgotten the session
    shown = gr.HTML(elem_id="run")

    def offer(group, cost, score):
        found = (axes(group, AXES), cost), (axes(group, SCORES), score)
        return [
            gr.Dropdown(there, value=value if value in (columns := [column for _, column in there]) else columns[0])
            for there, value in found
        ]

    def draw(group, cost, score, point):
        names = listed(group, cost, score)
        title, fig = charts.fitted(chart_of(group, cost, score))
        point = point if point in names else None
        said = origin(tradeoffs(group, cost, score), group)
        return said, title, fig, gr.Dropdown(names, value=point), tell(point, group)

    def tell(point, group):
        return show(run(point, group)) if point else ""

    quick = dict(**events.QUICK, api_visibility="private", show_progress="minimal")
    asked = [group, cost, score]
    drawn = dict(fn=events.guarded(draw), inputs=[*asked, point], outputs=[note, finding, chart, point, shown],
                 show_progress_on=chart, **quick)  # fmt: skip
    events.after([finding.parent.select, cost.input, score.input])(**drawn)
    events.after([group.input])(events.guarded(offer), asked, [cost, score], **quick).then(**drawn)
    clicked = heard.click(None, None, point, js=HEARD, api_visibility="private")
    for event in (clicked.then, point.input):
        event(events.guarded(tell), [point, group], shown, **quick)
    events.endpoint(tradeoffs, asked)
    events.endpoint(run, [gr.Textbox("teacher", visible=False, label="point"), group])
