"""Pick what runs a model fastest on this machine, of this package's precisions and the libraries that are installed."""

import math
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

from dlip.common.errors import UserError
from dlip.export import backends
from dlip.export.backends.agreement import Inputs, outputs_of, relative_errors
from dlip.export.onnx_runner import Runner
from dlip.export.runner_evaluate import EVALUATORS
from dlip.models.fast.linear import refuse_packed
from dlip.models.fast.precision import PRECISIONS, require_fp32_blip
from dlip.training.caches.disk import cache_key
from dlip.vlm import VLM

CACHE = "runs/cache/optimized"
"""Folder of converted models."""
TOLERANCE = 0.05
ROUNDS, SAMPLES = 5, 16
"""Timed captions of each candidate; images by which 8-bit ranges are chosen."""
BACKENDS = ("dlip, packed", "onnxruntime", "OpenVINO")
"""Those that can serve: torch.compile would compile anew for every batch size."""


@dataclass(frozen=True)
class Candidate:
    """A backend in a precision."""

    backend: str
    precision: str
    ms: float | None = None
    """Median of a caption with 3 beams and 20 tokens, one image. None if it was not timed."""
    error: float | None = None
    """Largest relative difference of its outputs from this package's in fp32. None if it cannot run the model."""
    reason: str = ""
    """Why it was not timed."""


def optimize(vlm: VLM, tolerance: float = TOLERANCE, cache: str | Path = CACHE) -> tuple[VLM | Runner, list[Candidate]]:
    """The model as its fastest candidate runs it, and all candidates, the fastest first.

    Image states, ITM logits and log-probabilities of given tokens may differ from fp32's by `tolerance`, relative to
    their norm. Converted models are kept in the folder `cache`; times are measured in turns, anew in every call.
    Raises UserError for a model in another precision, for one that is no BLIP, is made of several or cannot write
    captions, and where no candidate is within the tolerance.
    """
    med = require_fp32_blip(vlm.med, "optimize").model_for("lm")
    refuse_packed(med)
    packages = {name for backend in BACKENDS for name in backends.packages(backend) if find_spec(name)}
    about = {name: version(name) for name in sorted(packages | {"dlip", "torch"})} | {
        "model": med.config.to_dict(), "abilities": sorted(med.abilities), "tokenizer": vlm.tokenizer.rules(),
    }  # fmt: skip
    folder = Path(cache) / cache_key(about, med)
    vlm.save(folder / "model")
    inputs = Inputs(med.config, SAMPLES)

    def prepare(name: str, precision: str) -> backends.Backend:
        backend = backends.make(name, precision)
        return backend.prepare(folder / "model", folder / f"{name}-{precision}", inputs.images)

    outputs = outputs_of(vlm)
    expected = inputs.outputs(prepare("dlip", "fp32"), outputs)
    ready, others = {}, []
    for name, precision in product(BACKENDS, PRECISIONS):
        candidate = partial(Candidate, name, precision)
        try:
            backend = prepare(name, precision)
            errors = relative_errors(expected, inputs.outputs(backend, outputs))
            error = float(np.max([*errors.values()]))  # NaN if one is
        except Exception as mistake:  # a library raises nearly anything
            others.append(candidate(reason=str(mistake)))
            continue
        if error <= tolerance:
            ready[backend] = partial(candidate, error=error)
        else:  # also where it is NaN
            known = error if math.isfinite(error) else None
            others.append(candidate(error=known, reason=f"its outputs differ by {error:.2g}"))
    if not ready:
        reasons = "; ".join(f"{one.backend} in {one.precision}: {one.reason}" for one in others)
        raise UserError(f"no backend keeps the outputs within {tolerance:g} of fp32's ({reasons}); raise the tolerance")
    times = caption_times(list(ready), inputs)
    timed = {backend: candidate(ms=ms) for (backend, candidate), ms in zip(ready.items(), times, strict=True)}
    fastest = min(timed, key=lambda backend: timed[backend].ms)
    if isinstance(fastest.model, Runner):
        fastest.model.evaluators = EVALUATORS
    fastest.model.name = f"{vlm.name} by {timed[fastest].backend} in {timed[fastest].precision}"
    return fastest.model, sorted(timed.values(), key=lambda candidate: candidate.ms) + others


def caption_times(ready: list[backends.Backend], inputs: Inputs) -> list[float]:
    """Median milliseconds of a caption by each backend, taken in turns; the first round only warms up."""
    times = [[] for _ in ready]
    for _ in range(1 + ROUNDS):
        for backend, own in zip(ready, times, strict=True):
            start = time.perf_counter()
            backend.caption(*inputs.of("caption", 1))
            own.append(1000 * (time.perf_counter() - start))
    return [median(own[1:]) for own in times]
