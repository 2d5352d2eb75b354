"""Speed: both models measured here and now, end to end, module by module, in batches, and in memory."""

import json
from typing import TypedDict

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
import torch

from dlip.common.text import plural
from dlip.cost.latency import compare_latency, throughput
from dlip.cost.memory import memory
from dlip.evaluation.tasks.base import within
from dlip.models.tasks import TASKS
from dlip.plots import latency_bars, memory_bars, throughput_curves

from .. import events, inputs, jobs, models
from ..view import charts, parts

BATCHES = (1, 2, 4, 8, 16, 32)
WARMUP, TURNS = 3, 3
"""Rounds that are not counted, and those that each batch of the throughput is timed in."""
REPEATS, LENGTH, BEAMS = 50, 40, 8
"""The most that may be asked for on a server that others use too."""

APPLY = "task => Array(2).fill({__type__: 'update', interactive: task !== 'retrieval'})"
"""Sizes of a text apply to what writes one."""


class Speed(TypedDict):
    """What was measured, by side: "teacher" and "student"."""

    models: dict[str, str]
    latency: dict
    """"models": side -> p50_ms and p95_ms end to end, the same of each of its "modules", and all settings; "speedup":
    side -> the teacher's median / this one's. decoder_step is one token of the decoder's whole text."""
    batches: list[int]
    throughput: dict[str, list[float]]
    """Side -> items a second at each of `batches`, the median of three rounds."""
    memory: dict[str, dict] | None
    """Side -> weights_mb and peak_mb, the task's peak on top of them, in MB of 1,000,000 bytes; null if not asked."""


# --- what is done -----------------------------------------------------------------------------------------------------


@inputs.checked
def speed(
    teacher: str,
    student: str,
    task: str = "captioning",
    batch: int = 1,
    beams: int = 3,
    tokens: int = 20,
    repeats: int = 15,
    batches: list[int] = (1, 4, 16),
    with_memory: bool = True,
    progress: jobs.Progress | None = None,
) -> Speed:
    """Times both models in turns on random inputs and measures how many items a second they do, and their memory.

    task: captioning, vqa or retrieval. tokens: of every text that is written, the same for both. repeats: rounds that
    are counted. batches: sizes for the throughput. Others' work on the same machine slows both models alike.
    """
    batch, beams = inputs.whole(batch, "batch", 1, BATCHES[-1]), inputs.whole(beams, "beams", 1, BEAMS)
    tokens, repeats = inputs.whole(tokens, "tokens", 1, LENGTH), inputs.whole(repeats, "repeats", 1, REPEATS)
    sizes = map(inputs.counted, batches or ())
    batches = sorted({inputs.whole(size, "throughput's batch", 1, BATCHES[-1]) for size in sizes})
    with jobs.turns(progress) as step:
        pair = models.pair(teacher, student)
        size = dict(beams=beams, tokens=tokens)
        timed = compare_latency(pair, task, repeats, WARMUP, within(step, 0.0, 0.5), batch=batch, **size)
        rates = throughput(pair, task, batches, TURNS, within(step, 0.5, 0.8), **size) if batches else {}
        taken = {}
        for i, (side, vlm) in enumerate(pair.items()):
            if with_memory:
                taken[side] = memory(vlm, task, batch=batch, **size)
                step(0.9 + 0.1 * i)
    return Speed(models=models.names(pair), latency=timed, batches=batches, throughput=rates, memory=taken or None)


def table(found: Speed) -> pd.DataFrame:
    """Every number as a row: side, model, measure, part, batch, value, unit, and the settings."""
    rows = []
    for side, timed in found["latency"]["models"].items():
        about = {"side": side, "model": found["models"][side]}
        for part, spread in (("end to end", timed), *timed["modules"].items()):
            for key in ("p50_ms", "p95_ms"):
                rows.append(about | dict(measure=key.removesuffix("_ms"), part=part, batch=timed["batch"],
                                         value=spread[key], unit="ms"))  # fmt: skip
        for size, rate in zip(found["batches"], found["throughput"].get(side, []), strict=False):
            rows.append(about | dict(measure="throughput", part="end to end", batch=size, value=rate, unit="1/s"))
        taken = (found["memory"] or {}).get(side, {})
        for key, part in (("weights_mb", "weights"), ("peak_mb", "peak on top")):
            if taken.get(key) is not None:
                rows.append(
                    about | dict(measure="memory", part=part, batch=timed["batch"], value=taken[key], unit="MB")
                )
    settings = next(iter(found["latency"]["models"].values()))
    stated = ("task", "beams", "tokens", "text_tokens", "threads", "device", "dtype", "repeats", "warmup")
    return pd.DataFrame(rows).assign(**{name: settings[name] for name in stated}, torch=torch.__version__)


def settings(found: Speed) -> str:
    """How the numbers were measured, in one sentence."""
    of = found["latency"]["models"]["teacher"]
    said = [f"{of['task']}, batch {of['batch']}"]
    said += [f"{of[key]} {noun}" for key, noun in (("beams", "beams"), ("tokens", "new tokens")) if of[key]]
    said += [f"a text of {plural(of['text_tokens'], 'token')}"] if of["text_tokens"] else []
    said += [plural(of["threads"], "thread"), f"{of['device']}, {of['dtype']}"]
    said += [
        f"{plural(of['repeats'], 'round')} after {of['warmup']} to warm up, the models in turns",
        f"torch {torch.__version__}",
    ]
    return f"Measured: {'; '.join(said)}; random pictures and words, preprocessing apart."


def show(found: Speed) -> str:
    """Headline, both models' figures, settings, and the files."""
    timed, cards = found["latency"]["models"], {}
    for side, name in found["models"].items():
        own, figures = timed[side], {}
        figures["median, end to end"] = f"{own['p50_ms']:.1f} ms"
        figures["95th percentile"] = f"{own['p95_ms']:.1f} ms"
        for size, rate in zip(found["batches"], found["throughput"].get(side, []), strict=False):
            figures[f"{size} at a time"] = f"{rate:,.1f} a second"
        if found["memory"]:
            taken = found["memory"][side]
            peak = "not known here" if taken["peak_mb"] is None else f"{taken['peak_mb']:,.1f} MB"
            figures |= {"weights": f"{taken['weights_mb']:,.1f} MB", "memory on top": peak}
        rows = "".join(f"<tr><td>{noun}</td><td>{figure}</td></tr>" for noun, figure in figures.items())
        cards[side] = parts.card(side, models.role(name, side), name, f"<table>{rows}</table>")
    times = found["latency"]["speedup"]["student"]
    pace = f"{times:.1f} times as fast as" if times >= 1 else f"{1 / times:.1f} times slower than"
    pace = "as fast as" if pace.startswith("1.0 ") else pace
    files = charts.link("speed.json", "application/json", json.dumps(found, indent=1))
    files += charts.link("speed.csv", "text/csv", table(found).to_csv(index=False))
    return (
        f'<div class="speed"><h2>The student is {pace} its teacher.</h2>{parts.pair(cards, settings(found))}'
        f'<p class="files">Download: {files}</p></div>'
    )


def figures(found: Speed) -> list[tuple[str, go.Figure | None]]:
    """The heading and the figure of latency, throughput and memory; none where it was not measured."""

    def labelled(of: dict) -> dict:
        return {parts.SIDES[side]: value for side, value in of.items()}

    roles = labelled({side: models.role(name, side) for side, name in found["models"].items()})
    made = [latency_bars(labelled(found["latency"]["models"]), roles)]
    rates, taken = labelled(found["throughput"]), labelled(found["memory"] or {})
    made.append(throughput_curves(found["batches"], rates, roles) if rates else None)
    made.append(memory_bars(taken, roles) if taken else None)
    return [charts.fitted(fig) if fig else ("", None) for fig in made]


# --- the tab ----------------------------------------------------------------------------------------------------------


def tab(names: tuple[gr.Dropdown, gr.Dropdown], picture: gr.Image) -> None:
    with gr.Row():
        task = gr.Radio(list(TASKS), value="captioning", label="Task", scale=2, min_width=260)
        batches = gr.CheckboxGroup(
            list(BATCHES), value=[1, 4, 16], label="Throughput at batches of", scale=3, min_width=260
        )
        with_memory = gr.Checkbox(True, label="Memory", info="at the task’s peak", scale=1, min_width=260,
                                  elem_id="with-memory")  # fmt: skip
    with gr.Row():
        batch = gr.Slider(1, BATCHES[-1], 1, step=1, label="Batch", min_width=140)
        beams = gr.Slider(1, BEAMS, 3, step=1, label="Beams", min_width=140)
        tokens = gr.Slider(1, LENGTH, 20, step=1, label="New tokens", min_width=140)
        repeats = gr.Slider(1, REPEATS, 15, step=1, label="Rounds", min_width=140)
    with gr.Row(elem_classes="act"):
        start = gr.Button("Measure both models", variant="primary", elem_id="measure", scale=0, min_width=200)
        cancel = jobs.stop_button("stop-measuring")
    gr.HTML('<p class="hint">Both models do the same work here, in turns, on this app’s own machine.</p>')
    shown = gr.HTML(elem_id="measured")
    with gr.Column(visible=False) as drawn:
        heads = [*charts.place("latency")]
        with gr.Row():
            for elem_id in ("throughput", "memory"):
                with gr.Column(min_width=320):
                    heads += charts.place(elem_id)

    def measure(
        teacher,
        student,
        task,
        batch,
        beams,
        tokens,
        repeats,
        batches,
        with_memory,
        bar=gr.Progress(),  # noqa: B008
    ):
        step = jobs.stoppable(lambda share: bar(share, desc="Measuring"))
        step(0.0)
        found = speed(teacher, student, task, batch, beams, tokens, repeats, batches, with_memory, step)
        drawings = [part for pair in figures(found) for part in charts.filled(*pair)]
        return show(found), gr.Column(visible=True), *drawings

    void = dict(api_visibility="private", trigger_mode="multiple")
    task.change(None, task, [beams, tokens], js=APPLY, **void)
    asked = [*names, task, batch, beams, tokens, repeats, batches, with_memory]
    jobs.started(start, cancel, measure, asked, [shown, drawn, *heads], voids=asked, show_progress_on=shown)
    nothing = events.at_once(["", gr.update(visible=False)])
    gr.on([part.change for part in asked], None, None, [shown, drawn], js=nothing, **void)
    events.endpoint(speed, asked, events.LONG)
