"""What `optimize` picks for the shipped models: captioning time, scores kept, and whether a second run agrees."""

import tempfile
from functools import partial
from itertools import cycle

import torch

from dlip import data as data_sets
from dlip.bench import alternate, row
from dlip.bench.precision import caption_next, scores
from dlip.checkpoints.load import built_in_models
from dlip.data.scenes.dataset import Scenes
from dlip.export.optimize import Candidate, optimize
from dlip.records.schema import TABLE_SCORES
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
                calls = {key: partial(caption_next, model, cycle(pixels)) for key, model in models.items()}
                times = alternate(calls, rounds)
                scored = {key: scores(model, dataset, SHOWN) for key, model in models.items()}
            ms = {key: [1000 * seconds for seconds in times[key]] for key in models}
            for key in models:
                kept = min(100 * score / scored[name][column] for column, score in scored[key].items())
                figures = {column: round(score, 2) for column, score in scored[key].items()}
                rows.append(row(key, ms[key], ms[name], "ms", **figures, kept=round(kept, 2)))
            timed = _times(first)
            rows[-1] |= {"candidates": timed, "again": round(again[min(timed, key=timed.get)] / min(again.values()), 3)}
    return {"images": images, "rounds": rounds, "threads": torch.get_num_threads()}, rows


def _times(candidates: list[Candidate]) -> dict[str, float]:
    return {f"{one.backend} in {one.precision}": round(one.ms, 2) for one in candidates if one.ms}
