"""Captioning latency of the shipped students and their teacher, end to end, timed in alternation."""

from dlip.checkpoints.load import built_in_models
from dlip.cost.latency import compare_latency
from dlip.vlm import VLM


def run(rounds: int = 100) -> tuple[dict, list[dict]]:
    """Batch 1, 3 beams, 20 tokens. ratio: of the medians."""
    names = sorted(built_in_models("scenes"), key=lambda name: not name.endswith("teacher"))
    models = {name: VLM.load(name) for name in names}
    result = compare_latency(models, "captioning", repeats=rounds)
    first = next(iter(result["models"].values()))
    settings = {key: first[key] for key in ("batch", "beams", "tokens", "threads", "repeats", "warmup")}
    rows = [
        {"name": name, "ms": round(latency["p50_ms"], 2), "ms_p95": round(latency["p95_ms"], 2),
         "ratio": round(result["speedup"][name], 3),
         "params_m": round(sum(p.numel() for p in models[name].med.parameters()) / 1e6, 3)}
        for name, latency in result["models"].items()
    ]  # fmt: skip
    return settings, rows
