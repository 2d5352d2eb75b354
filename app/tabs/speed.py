"""Speed: both models measured here and now, end to end, module by module, in batches, and in memory."""

import json
from typing import Annotated, Literal, TypedDict

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
import torch
from pydantic import Field

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.cost.latency import compare_latency, throughput
from dlip.cost.memory import memory
from dlip.evaluation.tasks.base import subrange
from dlip.models.tasks import TASKS
from dlip.plots import latency_bars, memory_bars, throughput_curves

from .. import models
from ..endpoints import LONG, Text, api, checked, hint_of, run_job
from ..view import charts, parts

BATCHES = (1, 2, 4, 8, 16, 32)
WARMUP_ROUNDS, THROUGHPUT_ROUNDS = 3, 3
"""Rounds that are not counted, and rounds for each batch size of the throughput."""
MAX_ROUNDS, MAX_LENGTH, MAX_BEAMS = 50, 40, 8
"""Limits on a server that is shared with others."""

ENABLE_TEXT_SIZES = "task => Array(2).fill({__type__: 'update', interactive: task !== 'retrieval'})"
"""Beams and new tokens apply to tasks that write text."""


class Speed(TypedDict):
    """Measurements by side, "teacher" and "student"."""

    models: dict[str, str]
    latency: dict
    """"models": side -> p50_ms and p95_ms end to end and of each of its "modules", and all settings; "speedup": side ->
    the teacher's median / this one's. decoder_step is one token of the decoder."""
    batches: list[int]
    throughput: dict[str, list[float]]
    """Side -> items per second at each of `batches`, the median of three rounds."""
    memory: dict[str, dict] | None
    """Side -> weights_mb, and peak_mb on top of them, in MB of 1,000,000 bytes; null if not requested."""


@checked
def speed(
    teacher: Text,
    student: Text,
    task: Literal["captioning", "vqa", "retrieval"] = "captioning",
    batch: Annotated[int, Field(ge=1, le=BATCHES[-1])] = 1,
    beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] = 3,
    tokens: Annotated[int, Field(ge=1, le=MAX_LENGTH)] = 20,
    repeats: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 15,
    batches: list[Annotated[int, Field(ge=1, le=BATCHES[-1])]] = [1, 4, 16],  # noqa: B006
    with_memory: bool = True,
    progress: models.Progress | None = None,
) -> Speed:
    """Time both models in turns on random inputs, and measure their throughput and memory.

    task: captioning, vqa or retrieval, which includes ITM if both models have it. tokens: of every text that is
    written, the same for both. repeats: counted rounds. batches: batch sizes of the throughput. Other work on the same
    machine slows both models alike.
    """
    batches = sorted({*batches})
    with models.in_turns(progress) as step:
        pair = models.pair(teacher, student)
        for vlm in pair.values():
            if (needed := TASKS[task].abilities[0]) not in vlm.med.abilities:
                raise UserError(
                    f"the model {vlm.name} has no {needed.upper()}, which {task} is timed with; choose another one"
                )
        text = dict(beams=beams, tokens=tokens)
        latency = compare_latency(pair, task, repeats, WARMUP_ROUNDS, subrange(step, 0.0, 0.5), batch=batch, **text)
        rates = throughput(pair, task, batches, THROUGHPUT_ROUNDS, subrange(step, 0.5, 0.8), **text) if batches else {}
        usage, matching = {}, all("itm" in vlm.abilities for vlm in pair.values())
        for i, (side, vlm) in enumerate(pair.items()):
            if with_memory:
                usage[side] = memory(vlm, task, batch=batch, matching=matching, **text)
                step(0.9 + 0.1 * i)
    return Speed(models=models.names(pair), latency=latency, batches=batches, throughput=rates, memory=usage or None)


def table(speed: Speed) -> pd.DataFrame:
    """Every number as a row: side, model, measure, part, batch, value, unit, and the settings."""
    rows = []

    def add(side: str, measure: str, part: str, batch: int, value: float | None, unit: str) -> None:
        if value is not None:
            model = speed["models"][side]
            rows.append(dict(side=side, model=model, measure=measure, part=part, batch=batch, value=value, unit=unit))

    for side, latency in speed["latency"]["models"].items():
        for part, spread in (("end to end", latency), *latency["modules"].items()):
            for measure in ("p50", "p95"):
                add(side, measure, part, latency["batch"], spread[f"{measure}_ms"], "ms")
        for size, rate in zip(speed["batches"], speed["throughput"].get(side, []), strict=False):
            add(side, "throughput", "end to end", size, rate, "1/s")
        usage = (speed["memory"] or {}).get(side, {})
        add(side, "memory", "weights", latency["batch"], usage.get("weights_mb"), "MB")
        add(side, "memory", "peak on top", latency["batch"], usage.get("peak_mb"), "MB")
    settings = next(iter(speed["latency"]["models"].values()))
    columns = ("task", "beams", "tokens", "text_tokens", "threads", "device", "dtype", "repeats", "warmup")
    return pd.DataFrame(rows).assign(**{name: settings[name] for name in columns}, torch=torch.__version__)


def settings(speed: Speed) -> str:
    """The settings of the measurement, in one sentence."""
    latency = speed["latency"]["models"]["teacher"]
    by_itc = latency["task"] == "retrieval" and "fusion" not in latency["modules"]
    text = [f"{latency['task']}{' by ITC alone' if by_itc else ''}, batch {latency['batch']}"]
    text += [plural(latency[key], noun) for key, noun in (("beams", "beam"), ("tokens", "new token")) if latency[key]]
    text += [f"a text of {plural(latency['text_tokens'], 'token')}"] if latency["text_tokens"] else []
    text += [plural(latency["threads"], "thread"), f"{latency['device']}, {latency['dtype']}"]
    text += [f"{plural(latency['repeats'], 'round')} after {latency['warmup']} of warm-up, the models in turns"]
    return f"Measured: {'; '.join(text)}; torch {torch.__version__}; random images and tokens, without preprocessing."


def show(speed: Speed) -> str:
    """Headline, both models' figures, settings, and the files."""
    results = []
    for side, latency in speed["latency"]["models"].items():
        figures = {
            "median, end to end": f"{latency['p50_ms']:.1f} ms",
            "95th percentile": f"{latency['p95_ms']:.1f} ms",
        }
        for size, rate in zip(speed["batches"], speed["throughput"].get(side, []), strict=False):
            figures[f"{size} at a time"] = f"{rate:,.1f} per second"
        if speed["memory"]:
            usage = speed["memory"][side]
            peak = "not measured on this device" if usage["peak_mb"] is None else f"{usage['peak_mb']:,.1f} MB"
            figures |= {"weights": f"{usage['weights_mb']:,.1f} MB", "peak memory beyond the weights": peak}
        results.append({"figures": figures})
    times = speed["latency"]["speedup"]["student"]
    files = [
        charts.download_link("speed.json", "application/json", json.dumps(speed, indent=1)),
        charts.download_link("speed.csv", "text/csv", table(speed).to_csv(index=False)),
    ]
    names = [speed["models"][side] for side in parts.SIDES]
    return parts.pair("speed.html", names, results, settings(speed), files=files, pace=parts.pace(times))


def figures(speed: Speed) -> list[tuple[str, go.Figure | None]]:
    """Heading and figure of latency, throughput and memory; None if not measured."""

    def labeled(by_side: dict) -> dict:
        return {parts.SIDES[side]: value for side, value in by_side.items()}

    roles = labeled({side: models.role(name, side) for side, name in speed["models"].items()})
    rates, usage = labeled(speed["throughput"]), labeled(speed["memory"] or {})
    figures = [
        latency_bars(labeled(speed["latency"]["models"]), roles),
        throughput_curves(speed["batches"], rates, roles) if rates else None,
        memory_bars(usage, roles) if usage else None,
    ]
    return [charts.responsive(fig) if fig else ("", None) for fig in figures]


def tab(image: gr.Image, names: tuple[gr.Dropdown, gr.Dropdown], subject: gr.Textbox) -> None:
    with gr.Row():
        task = gr.Radio(list(TASKS), value="captioning", label="Task", scale=2, min_width=260)
        label, wide = "Throughput at batches of", dict(min_width=260)
        batches = gr.CheckboxGroup(list(BATCHES), value=[1, 4, 16], label=label, scale=3, **wide)
        info = "at the task’s peak"
        with_memory = gr.Checkbox(True, label="Memory", info=info, scale=1, elem_id="with-memory", **wide)
    with gr.Row():
        batch = gr.Slider(1, BATCHES[-1], 1, step=1, label="Batch", min_width=140)
        beams = gr.Slider(1, MAX_BEAMS, 3, step=1, label="Beams", min_width=140)
        tokens = gr.Slider(1, MAX_LENGTH, 20, step=1, label="New tokens", min_width=140)
        repeats = gr.Slider(1, MAX_ROUNDS, 15, step=1, label="Rounds", min_width=140)
    with gr.Row(elem_classes="act"):
        start, stop = parts.job_buttons("Measure both models", "measure", "stop-measuring")
    gr.HTML(parts.hint("Both models do the same work here, in turns, on this app’s own machine."))
    shown = gr.HTML(elem_id="measured")
    with gr.Column(visible=False) as drawn:
        chart_parts = [*charts.place("latency")]
        with gr.Row():
            for elem_id in ("throughput", "memory"):
                with gr.Column(min_width=320):
                    chart_parts += charts.place(elem_id)

    def measure(*arguments):
        measured = speed(*arguments)
        drawings = [update for heading, fig in figures(measured) for update in charts.updates(heading, fig)]
        return show(measured), gr.Column(visible=True), *drawings

    def failed(error: UserError) -> tuple:
        return hint_of(error), gr.Column(visible=False), *[gr.skip() for _ in chart_parts]

    task.change(None, task, [beams, tokens], js=ENABLE_TEXT_SIZES)
    arguments = [*names, task, batch, beams, tokens, repeats, batches, with_memory]
    run_job(start, stop, measure, failed, arguments, [shown, drawn, *chart_parts], "Measuring", shown)
    api(speed, LONG)
