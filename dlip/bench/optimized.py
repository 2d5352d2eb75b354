"""What `optimize` picks for the shipped models: captioning time, scores kept, and whether a second run agrees."""

import tempfile
from functools import partial, reduce
from itertools import cycle

import torch

from dlip import data as data_sets
from dlip.bench import alternate, row
from dlip.checkpoints.load import built_in_models
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import evaluate
from dlip.export.onnx_runner import Runner
from dlip.export.optimize import Candidate, optimize
from dlip.records.schema import SCORES, TABLE_SCORES
from dlip.vlm import VLM

SHOWN = [*TABLE_SCORES, "vqa"]
SAMPLES = 100
"""Images whose captions are timed."""


def run(rounds: int = 100, images: int = 1000, data: str | None = None) -> tuple[dict, list[dict]]:
    """Every shipped model in fp32, then as it is optimized: those of scenes on `images` of the test split, those of
    photographs on the val split of `data`, if passed.

    ms: from an image to its caption with 3 beams, a new image each round. ratio: to the model's own fp32. kept: minimum
    of all scores, in % of fp32's. candidates: of the optimization, ms each. again: time of what was picked over that of
    the fastest candidate when the model is optimized once more.
    """
    sets = {"scenes": Scenes("test", size=images)}
    sets |= {"photos": data_sets.open(data, "val", on_error="skip")} if data else {}
    rows = []
    for kind, dataset in sets.items():
        pixels = [dataset[i].image for i in range(min(SAMPLES, len(dataset)))]
        for name in built_in_models(kind):
            fp32 = VLM.load(name)
            with tempfile.TemporaryDirectory() as cache:
                fastest, first = optimize(fp32, cache=cache)
                again = _times(optimize(fp32, cache=cache)[1])
                models = {name: fp32, fastest.name: fastest}
                calls = {key: partial(_caption, model, cycle(pixels)) for key, model in models.items()}
                times, scores = (
                    alternate(calls, rounds),
                    {key: _scores(model, dataset) for key, model in models.items()},
                )
            ms = {key: [1000 * seconds for seconds in times[key]] for key in models}
            for key in models:
                kept = min(100 * score / scores[name][column] for column, score in scores[key].items())
                figures = {column: round(score, 2) for column, score in scores[key].items()}
                rows.append(row(key, ms[key], ms[name], "ms", **figures, kept=round(kept, 2)))
            timed = _times(first)
            rows[-1] |= {"candidates": timed, "again": round(again[min(timed, key=timed.get)] / min(again.values()), 3)}
    return {"images": images, "rounds": rounds, "threads": torch.get_num_threads()}, rows


def _times(candidates: list[Candidate]) -> dict[str, float]:
    return {f"{one.backend} in {one.precision}": round(one.ms, 2) for one in candidates if one.ms}


def _caption(model: VLM | Runner, images) -> None:
    model.caption([next(images)])


def _scores(model: VLM | Runner, dataset) -> dict[str, float]:
    metrics = {"metrics": evaluate(model, dataset, progress=False)}
    scores = {name: reduce(lambda found, key: (found or {}).get(key), SCORES[name], metrics) for name in SHOWN}
    return {name: score for name, score in scores.items() if score is not None}
