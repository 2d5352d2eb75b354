"""How the time of captioning and ITM grows with batch, image size, tokens, beams and candidates."""

from dataclasses import replace
from functools import partial

import torch

from dlip.bench import alternate, row
from dlip.bench.step import random_model
from dlip.cost.latency import Workload
from dlip.models.config import preset

SIZE = "dlip-small"
DEFAULTS = dict(batch=1, image_size=224, tokens=20, beams=3)
VARIED = {"batch": (1, 2, 4, 8, 16), "image_size": (112, 224, 384), "tokens": (5, 10, 20, 40), "beams": (1, 3, 5)}
CANDIDATES = (1, 16, 64, 256)


def run(rounds: int = 5) -> tuple[dict, list[dict]]:
    """Captioning by DLIP-Small with random weights, end to end; and ITM of candidate texts of 12 tokens for one image.

    One setting varies at a time. per: seconds per image, or per candidate. ratio: relative to the setting's first row.
    """
    sizes = {side: replace(preset(SIZE), image_size=side) for side in VARIED["image_size"]}
    models = {side: random_model(size).med.eval() for side, size in sizes.items()}
    calls, groups = {}, {}
    for setting, values in VARIED.items():
        for value in values:
            settings = {**DEFAULTS, setting: value}
            med = models[settings.pop("image_size")]
            calls[f"{setting} {value}"] = Workload(med, "captioning", **settings)
            groups[f"{setting} {value}"] = setting, values[0]
    med = models[DEFAULTS["image_size"]]
    states = torch.randn(1, med.config.grid**2 + 1, med.config.image_width)
    for count in CANDIDATES:
        calls[f"candidates {count}"] = partial(match, med, states, count)
        groups[f"candidates {count}"] = "candidates", CANDIDATES[0]
    times, rows = alternate(calls, rounds), []
    for name, (setting, first) in groups.items():
        one = row(name, times[name], times[f"{setting} {first}"], "s")
        shared = int(name.split()[1]) if setting in ("batch", "candidates") else 1
        rows.append(one | {"per": round(one["s"] / shared, 5)})
    return {"size": SIZE, **DEFAULTS, "rounds": rounds, "threads": torch.get_num_threads()}, rows


@torch.inference_mode()
def match(med, states: torch.Tensor, count: int) -> torch.Tensor:
    ids = torch.full((count, 12), 9)
    return med.match_logits(med.fuse(ids, torch.ones_like(ids, dtype=torch.bool), states))
