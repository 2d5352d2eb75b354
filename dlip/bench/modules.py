"""Where a caption's time goes: its modules against what this machine can do at most, measured beside them."""

from functools import partial
from statistics import median

import torch
import torch.nn.functional as F

from dlip.bench import by_turns, row
from dlip.bench.step import words
from dlip.cost.count import decoder_macs, image_macs, step_macs
from dlip.cost.latency import Workload
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_model
from dlip.models.config import ModelConfig
from dlip.models.fast.linear import Linear

SIZES, BATCHES = ("blip-base", "dlip-small"), (1, 8)
BEAMS, TOKENS = 3, 20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDE, BYTES = 2048, 1 << 28
"""Of the product and of the reading that are the machine's most."""


@torch.inference_mode()
def run(rounds: int = 5) -> tuple[dict, list[dict]]:
    """The machine's largest product in fp32 and bf16 and its reading from memory, products of a few rows and of many by
    torch and here (`dlip.models.fast.linear`), then every module of a caption.

    gflops: a second; gb: that are read a second, of a decoding step its weights, once; peak: of the product or, of a
    decoding step, of the reading, in %. Each module runs alone, 3 beams, 20 tokens, 224 px.
    """
    layer, x, store = Linear(SIDE, SIDE), torch.randn(SIDE, SIDE), torch.ones(BYTES // 4)
    half = torch.nn.Linear(SIDE, SIDE).bfloat16()
    most = {"product, fp32": partial(layer, x), "product, bf16": partial(half, x.bfloat16()), "reading": store.sum}
    few = {
        f"{rows} rows, fp32: {who}": partial(call, x[:rows])
        for rows in (3, 24, SIDE) for who, call in (("torch", partial(F.linear, weight=layer.weight)), ("here", layer))
    }  # fmt: skip
    vocabulary, calls, costs = words(Scenes("train-small", size=16)), {}, {}
    for size in SIZES:
        for precision, dtype in DTYPES.items():
            med = new_model(size, vocabulary, 0).med.to(dtype)
            for batch in BATCHES:
                for part, call in Workload(med, "captioning", batch, BEAMS, TOKENS).modules().items():
                    name = f"{size}, {precision}, batch {batch}: {part}"
                    calls[name], costs[name] = call, (precision, *cost(med.config, part, batch, dtype.itemsize))
    times = {name: [1000 * s for s in some] for name, some in by_turns(most | few | calls, rounds).items()}  # ms
    peaks = {
        name: (BYTES if name == "reading" else 2 * SIDE**3) / min(times[name]) / 1e6 for name in most
    }  # G a second
    rows = [
        row(name, times[name], times[name], "ms", **{"gb" if name == "reading" else "gflops": round(peak, 1)})
        for name, peak in peaks.items()
    ]
    for name in few:
        gflops = 2 * int(name.split()[0]) * SIDE**2 / median(times[name]) / 1e6
        rows.append(row(name, times[name], times[name], "ms", gflops=round(gflops, 1)))
    for name, (precision, flops, weights) in costs.items():
        gflops, gb = (amount / median(times[name]) / 1e6 for amount in (flops, weights))
        share = gb / peaks["reading"] if weights else gflops / peaks[f"product, {precision}"]
        done = {"gflops": round(gflops, 1), **({"gb": round(gb, 1)} if weights else {}), "peak": round(100 * share)}
        rows.append(row(name, times[name], times[name], "ms", **done))
    for one in rows:
        del one["ratio"]  # to nothing
    return {"beams": BEAMS, "tokens": TOKENS, "rounds": rounds, "threads": torch.get_num_threads()}, rows


def cost(c: ModelConfig, part: str, batch: int, size: int) -> tuple[int, int]:
    """FLOPs of a module of a caption, and the bytes of its weights of `size` bytes: 0 of all but a decoding step.

    A decoding step is that of all beams with half of the text behind it, as `Workload` times it.
    """
    picture, prompt = c.grid**2 + 1, 1 + len(c.prompt_ids)
    if part == "image":
        return batch * image_macs(c).flops, 0
    if part == "decoder":
        return batch * decoder_macs(c, picture, prompt, TOKENS, BEAMS).flops, 0
    step = step_macs(c, 1, (prompt + TOKENS) // 2, picture)
    return batch * BEAMS * step.flops, size * step.linear
