"""Scores and captioning latency of the shipped student in every precision, and of what `optimize` picks."""

import copy
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

from dlip import data as data_sets
from dlip.bench import alternate, row
from dlip.checkpoints.load import built_in_models, save_model
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.evaluate import evaluate
from dlip.export.onnx_export import quantize, to_onnx
from dlip.export.onnx_runner import Runner
from dlip.export.optimize import Candidate, Optimized, optimize
from dlip.export.runner_evaluate import MeasuredRunner
from dlip.models.fast.precision import PRECISIONS, convert_precision
from dlip.records.schema import HEADLINE_SCORES, SCORES, TABLE_SCORES, value_at
from dlip.vlm import VLM

MODEL = "scenes/student"
SHOWN = [*TABLE_SCORES, "vqa"]
SAMPLES = 100
"""Images whose captions are timed."""


def run(rounds: int = 100, images: int = 1000, data: str | None = None) -> tuple[dict, list[dict]]:
    """On `images` of the test split. ms: from an image to its caption with 3 beams, a new image each round. mb: weights
    on disk. kept: minimum of the headline scores, in % of fp32's. Then the rows of `optimized`: models of scenes on the
    same images, those of photographs on the val split of `data`, if passed.
    """
    threads, scenes, fp32 = torch.get_num_threads(), Scenes("test", size=images), VLM.load(MODEL)
    with tempfile.TemporaryDirectory() as name:
        folder, models, mb = Path(name), {}, {}
        for name in PRECISIONS:
            models[name] = VLM(convert_precision(copy.deepcopy(fp32.med), name), fp32.tokenizer, name)
            save_model(models[name].med, fp32.tokenizer, folder / name)
            mb[name] = _megabytes(folder / name / "model.safetensors")
        for name, graphs in export_graphs(MODEL, folder).items():
            models[name] = MeasuredRunner(Runner(graphs, threads), name)
            mb[name] = _megabytes(graphs / "weights.bin")
        pixels = [scenes[i].image for i in range(images)]
        times = alternate({name: partial(caption_next, model, cycle(pixels)) for name, model in models.items()}, rounds)
        scored, rows = {name: scores(model, scenes, TABLE_SCORES) for name, model in models.items()}, []
    for name in models:
        kept = min(100 * scored[name][column] / scored["fp32"][column] for column in HEADLINE_SCORES)
        ms, first = ([1000 * seconds for seconds in times[key]] for key in (name, "fp32"))
        figures = {column: round(score, 2) for column, score in scored[name].items()}
        rows.append(row(name, ms, first, "ms", **figures, kept=round(kept, 2), mb=mb[name]))
    sets = {"scenes": scenes} | ({"photos": data_sets.open(data, "val", on_error="skip")} if data else {})
    rows += optimized(sets, rounds)
    return {"model": MODEL, "images": images, "rounds": rounds, "threads": threads}, rows


def optimized(sets: dict[str, object], rounds: int) -> list[dict]:
    """Rows of every shipped model in fp32, then as it is optimized, with what `optimized_twice` says.

    sets: kind of images ("scenes", "photos") -> data.
    """
    rows = []
    for kind, dataset in sets.items():
        pixels = [dataset[i].image for i in range(min(SAMPLES, len(dataset)))]
        for name in built_in_models(kind):
            fp32 = VLM.load(name)
            with tempfile.TemporaryDirectory() as cache:
                fastest, about = optimized_twice(fp32, cache)
                models = {name: fp32, fastest.name: fastest}
                calls = {key: partial(caption_next, model, cycle(pixels)) for key, model in models.items()}
                times = alternate(calls, rounds)
                scored = {key: scores(model, dataset, SHOWN) for key, model in models.items()}
            ms = {key: [1000 * seconds for seconds in times[key]] for key in models}
            for key in models:
                kept = min(100 * score / scored[name][column] for column, score in scored[key].items())
                figures = {column: round(score, 2) for column, score in scored[key].items()}
                rows.append(row(key, ms[key], ms[name], "ms", **figures, kept=round(kept, 2)))
            rows[-1] |= about
    return rows


def optimized_twice(vlm: VLM, cache: str) -> tuple[Optimized, dict]:
    """The model as it is optimized; its candidates, with the ms of what is timed; and what was picked for each.

    again: largest ratio, over what is timed, of that pick's time in a second run to the fastest candidate's.
    """
    fastest, candidates = optimize(vlm, cache=cache)
    first, second = _times(candidates), _times(optimize(vlm, cache=cache)[1])
    picks = {what: min(first, key=lambda name: first[name][what]) for what in next(iter(first.values()))}
    again = max(second[name][what] / min(ms[what] for ms in second.values()) for what, name in picks.items())
    return fastest, {"candidates": first, "picks": picks, "again": round(again, 3)}


def _times(candidates: list[Candidate]) -> dict[str, dict[str, float]]:
    return {str(one): {what: round(ms, 2) for what, ms in one.ms.items()} for one in candidates if one.ms}


def export_graphs(model: str, folder: Path) -> dict[str, Path]:
    """Export a model to ONNX; return the folders of its graphs in fp32 and int8."""
    fp32 = to_onnx(model, folder)[0]["onnx"]
    quantize(int8 := Path(shutil.copytree(fp32, folder / "onnx-int8")))
    return {"onnx": fp32, "onnx-int8": int8}


def caption_next(model: VLM | Runner | Optimized, images: Iterator) -> None:
    model.caption([next(images)])


def scores(model: VLM | Runner | Optimized, dataset, columns: Iterable[str]) -> dict[str, float]:
    """Column of `dlip.records` -> the model's score, for those of the columns that the data have."""
    metrics = {"metrics": evaluate(model, dataset, progress=False)}
    values = {column: value_at(metrics, *SCORES[column]) for column in columns}
    return {column: value for column, value in values.items() if value is not None}


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 3)
