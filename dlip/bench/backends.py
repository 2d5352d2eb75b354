"""Captions, image states and ITM scores by every backend of `dlip.export.backends`, beside the machine's own limit."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dlip.bench import alternate, row
from dlip.bench.modules import BYTES, SIDE, peak_calls
from dlip.bench.step import random_model
from dlip.common.errors import UserError
from dlip.common.torch_private import int8_times_int8
from dlip.cost.count import context_macs, image_macs, step_macs, task_macs
from dlip.cost.memory import peak_bytes, peak_mb
from dlip.export import backends
from dlip.export.backends.agreement import (
    BATCHES,
    OUTPUTS,
    TEXT,
    TOKENS,
    Inputs,
    outputs_of,
    reference,
    relative_errors,
)
from dlip.export.backends.base import BEAMS
from dlip.export.backends.worker import Worker
from dlip.export.optimize import SAMPLES
from dlip.models.backbone import backbone_size
from dlip.models.config import ModelConfig
from dlip.training.caches.disk import stored_bytes
from dlip.vlm import VLM

RANDOM = ("blip-base", "dlip-small")
SHIPPED = ("scenes/teacher", "scenes/student", "photos/teacher", "photos/student")
OUTPUT_NAMES = ("caption", "states", "pair")
TOLERANCES = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.2}
"""Precision -> largest difference from this package's fp32, relative to the norm of the numbers."""
OWN = ("dlip", "dlip, packed")
STOCK, DLIP = ("stock", "fp32"), ("dlip", "fp32")

Workers = dict[tuple[str, str], Worker]
"""Backend and precision -> its process."""


@dataclass(frozen=True)
class Cell:
    """What is compared: an output for a batch."""

    output: str
    batch: int


def run(rounds: int = 5) -> tuple[dict, list[dict]]:
    """Captions with 3 beams and 20 tokens, end to end; pairs of an image and 12 tokens; random weights at 224 px, and
    a caption by each shipped model.

    Every backend runs in a process of its own; the backends of a precision alternate. Before timing each is compared
    with this package in fp32: fp32 has to give the same captions, and numbers may differ by `TOLERANCES`.
    A timed row has ms, and ratio: speed relative to stock in fp32, timed in the same turns, or to this package in fp32
    where stock has no such model (one with an image backbone). tokens: mean number of tokens of a caption.

    A row "limit" is the time of the products at the measured peak, but no less than that of reading each step's weights
    at the measured bandwidth. A row of a model and a backend has peak_mb (peak memory of the process, in MB),
    disk_mb, start_s (from the start of the process to the first caption of a converted model) and error (largest
    relative difference). cannot: why a backend lacks a precision or a model, or how far its outputs differ.
    Raises UserError if a package or /proc is missing, or if what ratios are relative to cannot run the model.
    """
    if peak_bytes(torch.device("cpu")) is None:
        raise UserError("this benchmark reads the memory of processes from /proc; run it on Linux")
    for name in backends.CLASSES:
        backends.check_installed(name)
    threads, peaks = torch.get_num_threads(), measured_peaks(rounds)
    rows = [row_of_peak(name, peak) for name, peak in peaks.items()]
    rows += [
        {"name": f"{name} {precision}", "precision": precision, "cannot": reason}
        for name in backends.CLASSES if name not in OWN for precision, reason in backends.backend(name).lacks.items()
    ]  # fmt: skip
    for model in (*RANDOM, *SHIPPED):
        with TemporaryDirectory() as folder:  # the conversions of BLIP-Base take some 10 GB
            cells = [Cell(output, n) for output in OUTPUT_NAMES for n in BATCHES]
            cells = cells if model in RANDOM else [Cell("caption", 1)]
            rows += compare(model, saved(model, Path(folder)), Path(folder), cells, rounds, threads, peaks)
    settings = {"image_size": 224, "beams": BEAMS, "tokens": TOKENS, "text_tokens": TEXT, "rounds": rounds}
    versions = backends.releases(package for name in backends.CLASSES for package in backends.backend(name).packages)
    return settings | {"threads": threads, **versions}, rows


def saved(model: str, folder: Path) -> str:
    """A shipped model's name, or the folder of a random one."""
    if model in SHIPPED:
        return model
    random_model(model).save(folder / model)
    return str(folder / model)


def compare(
    model: str, path: str, folder: Path, cells: list[Cell], rounds: int, threads: int, peaks: dict[str, float]
) -> list[dict]:
    """The rows of a model: every precision's backends, timed in turns. path: of the model; folder: for conversions."""
    vlm = VLM.load(path)
    config, names, batches = vlm.med.config, outputs_of(vlm), sorted({cell.batch for cell in cells})
    inputs, first = Inputs(config, SAMPLES), DLIP if config.image_backbone else STOCK
    expected = reference(backends.make(*DLIP).prepare(path, folder / "dlip-fp32", None), inputs, names, batches)
    rows = []
    for precision in TOLERANCES:
        variants = [first, *((name, precision) for name in backends.CLASSES if (name, precision) != first)]
        with ExitStack() as stack:
            workers, errors = {}, {}
            for name, own in variants:
                if own in backends.backend(name).lacks:
                    continue
                job = (name, own, threads, path, folder / f"{name}-{own}", inputs.images)
                try:
                    Worker(*job).stop()  # converts the model
                    worker = Worker(*job)
                    stack.callback(worker.stop)
                    outputs = inputs.outputs(worker, names, batches)
                    errors[name, own] = difference(f"{model} by {worker.name}", own, expected, outputs)
                except UserError as reason:
                    if (name, own) == first:  # ratios are relative to it
                        raise
                    rows.append({"name": name, "model": model, "precision": own, "cannot": str(reason)})
                    continue
                workers[name, own] = worker
            rows += measure(model, config, folder, workers, precision, cells, inputs, errors, rounds, peaks)
    return rows


def measure(
    model: str, config: ModelConfig, folder: Path, workers: Workers, precision: str, cells: list[Cell],
    inputs: Inputs, errors: dict[tuple[str, str], float], rounds: int, peaks: dict[str, float],
) -> list[dict]:  # fmt: skip
    """The rows of a model's backends of one precision; the first of `workers` is what ratios are relative to."""
    rows = []
    for cell in cells:
        rows += timed(model, cell, precision, workers, inputs, rounds)
        about = {"model": model, "output": cell.output, "batch": cell.batch, "precision": precision}
        rows.append({"name": "limit", "ms": round(1000 * limit_s(config, cell, precision, peaks), 3), **about})
    for (name, own), worker in workers.items():
        if own == precision:
            rows.append({
                "name": name, "model": model, "precision": own, "peak_mb": round(peak_mb(worker.process.pid)),
                "disk_mb": round(stored_bytes(folder / f"{name}-{own}") / 1e6, 1), "start_s": round(worker.start_s, 2),
                "error": float(f"{errors[name, own]:.3g}"),
            })  # fmt: skip
    return rows


def timed(model: str, cell: Cell, precision: str, workers: Workers, inputs: Inputs, rounds: int) -> list[dict]:
    """A row of each worker of this precision, its times taken in turns with all others'."""
    arguments, times, texts = inputs.of(cell.output, cell.batch), {variant: [] for variant in workers}, {}
    for turn in range(1 + rounds):
        for variant, worker in workers.items():
            seconds, result = worker.call(OUTPUTS[cell.output], *arguments)
            if turn:
                times[variant].append(1000 * seconds)
            texts[variant] = result
    rows, first = [], next(iter(times.values()))
    for (name, own), ms in times.items():
        more = {"model": model, "output": cell.output, "batch": cell.batch, "precision": own}
        if cell.output == "caption":
            more["tokens"] = round(float(np.mean([len(text) for text in texts[name, own]])), 1)
        if own == precision:
            rows.append(row(name, ms, first, "ms", **more))
    return rows


def difference(name: str, precision: str, expected: dict, actual: dict) -> float:
    """Largest of `relative_errors`.

    Raises UserError if it exceeds `TOLERANCES`, or captions in fp32 are not the same.
    """
    errors = relative_errors(expected, actual)
    for (output, batch), error in errors.items():
        if not error <= TOLERANCES[precision]:  # also where it is NaN
            raise UserError(f"the {output} of {name} differ by {error:.2g} from this package's, batch {batch}")
    for (output, batch), texts in actual.items():
        if output == "caption" and precision == "fp32" and texts != expected[output, batch]:
            raise UserError(f"the captions of {name} differ from this package's, batch {batch}")
    return max(errors.values())


# --- limits -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measured_peaks(rounds: int) -> dict[str, float]:
    """Operations per second of a large product by precision, and bytes per second of "reading"."""
    a = torch.ones(SIDE, SIDE, dtype=torch.int8)
    calls = peak_calls() | {"product, int8": lambda: int8_times_int8(a, a)}
    seconds = {name: min(times) for name, times in alternate(calls, rounds).items()}
    return {name.removeprefix("product, "): (BYTES if name == "reading" else 2 * SIDE**3) / s
            for name, s in seconds.items()}  # fmt: skip


def row_of_peak(name: str, peak: float) -> dict:
    return {"name": "reading", "gb": round(peak / 1e9, 1)} if name == "reading" else {
        "name": f"product, {name}", "precision": name, "gflops": round(peak / 1e9, 1)
    }  # fmt: skip


def limit_s(c: ModelConfig, cell: Cell, precision: str, peaks: dict[str, float]) -> float:
    """Seconds that an output takes at least: each pass its products or its weights, whichever takes longer."""
    size = {"fp32": 4, "bf16": 2, "int8": 1}[precision]

    def seconds(flops: int, weights: int) -> float:
        return max(flops / peaks[precision], size * weights / peaks["reading"])

    n, patches, image = cell.batch, c.grid**2 + 1, image_macs(c)
    weights = c.image_layers * (4 * c.image_width**2 + 2 * c.image_width * c.image_mlp)
    if c.image_backbone:
        weights += backbone_size(c.image_backbone, c.image_size).params
    total = seconds(n * image.flops, weights)
    if cell.output == "pair":
        fusion = task_macs(c, "retrieval", TEXT)["fusion"]
        return total + seconds(n * fusion.flops, step_macs(c, 1, 0, patches).linear)
    if cell.output == "caption":
        total += seconds(n * context_macs(c, patches).flops, context_macs(c, 1).linear)
        prompt = 1 + len(c.prompt_ids)
        for before in range(prompt - 1, prompt + TOKENS - 1):
            step = step_macs(c, 1, before, patches)
            total += seconds(n * BEAMS * step.flops, step.linear)
    return total
