"""How long a caption takes: the shipped students against their teacher, end to end, the models by turns."""

import torch

from dlip.checkpoints.load import built_in_models
from dlip.cost.latency import compare_latency
from dlip.vlm import VLM


def run(rounds: int = 100) -> tuple[dict, list[dict]]:
    """Batch 1, 3 beams, 20 tokens; the ratio is that of the medians."""
    models = {name: VLM.load(name) for name in sorted(built_in_models(), key=lambda name: not name.endswith("teacher"))}
    found = compare_latency(models, "captioning", repeats=rounds)
    one = next(iter(found["models"].values()))
    settings = {key: one[key] for key in ("batch", "beams", "tokens", "threads", "repeats", "warmup")}
    rows = [
        {"name": name, "ms": round(took["p50_ms"], 2), "ms_p95": round(took["p95_ms"], 2),
         "ratio": round(found["speedup"][name], 3), "params_m": _params_m(models[name])}
        for name, took in found["models"].items()
    ]  # fmt: skip
    return settings, rows


def _params_m(vlm: VLM) -> float:
    with torch.no_grad():
        return round(sum(p.numel() for p in vlm.med.parameters()) / 1e6, 3)
