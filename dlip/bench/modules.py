"""The modules of captioning compared with the peak speed of the machine, measured beside them."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F

from dlip.bench import alternate, row
from dlip.bench.step import random_model
from dlip.cost.count import decoder_macs, image_macs, step_macs
from dlip.cost.latency import Workload
from dlip.models.config import ModelConfig
from dlip.models.fast.linear import Linear

SIZES, BATCHES = ("blip-base", "dlip-small"), (1, 8)
BEAMS, TOKENS = 3, 20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDE, BYTES = 2048, 1 << 28
"""Side of the matrix product and bytes of the memory read that measure the machine's peak."""


@torch.inference_mode()
def run(rounds: int = 5) -> tuple[dict, list[dict]]:
    """A large matrix product in fp32 and bf16, a memory read, small products by torch and by `dlip.models.fast.linear`,
    then every module of captioning alone, with 3 beams, 20 tokens, 224 px.

    gflops: per second. gb: read per second; a decoding step reads its weights once. peak: in % of the large product, or
    for a decoding step of the memory read.
    """
    layer, x, largest = Linear(SIDE, SIDE), torch.randn(SIDE, SIDE), peak_calls()
    products = {
        f"{rows} rows, fp32: {name}": partial(call, x[:rows])
        for rows in (3, 24, SIDE) for name, call in (("torch", partial(F.linear, weight=layer.weight)), ("here", layer))
    }  # fmt: skip
    calls, costs = {}, {}
    for size in SIZES:
        for precision, dtype in DTYPES.items():
            med = random_model(size).med.to(dtype)
            for batch in BATCHES:
                for part, call in Workload(med, "captioning", batch, BEAMS, TOKENS).modules().items():
                    name = f"{size}, {precision}, batch {batch}: {part}"
                    calls[name], costs[name] = call, (precision, *cost(med.config, part, batch, dtype.itemsize))
    seconds = alternate(largest | products | calls, rounds)
    times = {name: [1000 * s for s in values] for name, values in seconds.items()}  # ms
    peaks = {
        name: (BYTES if name == "reading" else 2 * SIDE**3) / min(times[name]) / 1e6 for name in largest
    }  # G a second
    rows = [
        row(name, times[name], times[name], "ms", **{"gb" if name == "reading" else "gflops": round(peak, 1)})
        for name, peak in peaks.items()
    ]
    for name in products:
        gflops = 2 * int(name.split()[0]) * SIDE**2 / median(times[name]) / 1e6
        rows.append(row(name, times[name], times[name], "ms", gflops=round(gflops, 1)))
    for name, (precision, flops, weights) in costs.items():
        gflops, gb = (amount / median(times[name]) / 1e6 for amount in (flops, weights))
        share = gb / peaks["reading"] if weights else gflops / peaks[f"product, {precision}"]
        figures = {"gflops": round(gflops, 1), **({"gb": round(gb, 1)} if weights else {}), "peak": round(100 * share)}
        rows.append(row(name, times[name], times[name], "ms", **figures))
    for one in rows:
        del one["ratio"]  # there is no reference
    return {"beams": BEAMS, "tokens": TOKENS, "rounds": rounds, "threads": torch.get_num_threads()}, rows


def peak_calls() -> dict[str, Callable[[], object]]:
    """The calls that measure the machine's peak: a large product in each precision, and a memory read."""
    x, store = torch.randn(SIDE, SIDE), torch.ones(BYTES // 4)
    layer, half = Linear(SIDE, SIDE), torch.nn.Linear(SIDE, SIDE).bfloat16()
    return {"product, fp32": partial(layer, x), "product, bf16": partial(half, x.bfloat16()), "reading": store.sum}


def cost(c: ModelConfig, part: str, batch: int, size: int) -> tuple[int, int]:
    """FLOPs of a module of captioning, and the bytes of weights that a decoding step reads (0 for other modules).

    size: bytes per weight. A decoding step has all beams and half of the text before it, as `Workload` times it.
    """
    patches, prompt = c.grid**2 + 1, 1 + len(c.prompt_ids)
    if part == "image":
        return batch * image_macs(c).flops, 0
    if part == "decoder":
        return batch * decoder_macs(c, patches, prompt, TOKENS, BEAMS).flops, 0
    step = step_macs(c, 1, (prompt + TOKENS) // 2, patches)
    return batch * BEAMS * step.flops, size * step.linear
