"""How the cost of a caption, of an answer and of a pair grows with what is asked: one thing varied at a time."""

from dataclasses import replace
from functools import partial

import torch

from dlip.bench import by_turns, row
from dlip.bench.step import words
from dlip.cost.latency import Workload
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_model
from dlip.models.config import preset

SIZE = "dlip-small"
USUAL = dict(batch=1, image_size=224, tokens=20, beams=3)
VARIED = {"batch": (1, 2, 4, 8, 16), "image_size": (112, 224, 384), "tokens": (5, 10, 20, 40), "beams": (1, 3, 5)}
CANDIDATES = (1, 16, 64, 256)


def run(rounds: int = 5) -> tuple[dict, list[dict]]:
    """A caption of DLIP-Small end to end, random weights; and the texts of a picture scored by ITM, of 12 tokens.

    per: seconds of one picture, or of one candidate. ratio: against the first row of what is varied.
    """
    vocabulary = words(Scenes("train-small", size=16))
    sizes = {side: replace(preset(SIZE), image_size=side) for side in VARIED["image_size"]}
    models = {side: new_model(size, vocabulary, 0).med.eval() for side, size in sizes.items()}
    calls, groups = {}, {}
    for what, values in VARIED.items():
        for value in values:
            asked = {**USUAL, what: value}
            med = models[asked.pop("image_size")]
            calls[f"{what} {value}"], groups[f"{what} {value}"] = (
                Workload(med, "captioning", **asked),
                (what, values[0]),
            )
    med = models[USUAL["image_size"]]
    states = torch.randn(1, med.config.grid**2 + 1, med.config.image_width)
    for count in CANDIDATES:
        calls[f"candidates {count}"] = partial(score, med, states, count)
        groups[f"candidates {count}"] = "candidates", CANDIDATES[0]
    times, rows = by_turns(calls, rounds), []
    for name, (what, first) in groups.items():
        one = row(name, times[name], times[f"{what} {first}"], "s")
        shared = int(name.split()[1]) if what in ("batch", "candidates") else 1
        rows.append(one | {"per": round(one["s"] / shared, 5)})
    return {"size": SIZE, **USUAL, "rounds": rounds, "threads": torch.get_num_threads()}, rows


@torch.inference_mode()
def score(med, states: torch.Tensor, count: int) -> torch.Tensor:
    ids = torch.full((count, 12), 9)
    return med.match_logits(med.fuse(ids, torch.ones_like(ids, dtype=torch.bool), states))
