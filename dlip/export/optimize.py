"""Pick what runs each task of a model fastest on this machine, of this package's precisions and the libraries that are
installed."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import EVALUATORS as EVALUATORS_OF_VLM
from dlip.export import backends
from dlip.export.backends.agreement import TOKENS, Inputs, outputs_of, reference, relative_errors
from dlip.export.backends.base import BEAMS
from dlip.export.onnx_runner import Runner
from dlip.export.runner_evaluate import EVALUATORS
from dlip.models.fast.linear import refuse_packed
from dlip.models.fast.precision import PRECISIONS, require_fp32_blip
from dlip.training.caches.disk import cache_key
from dlip.vlm import VLM

CACHE = "runs/cache/optimized"
"""Folder of converted models."""
TOLERANCE = 0.05
SAMPLES = 16
"""Images by which 8-bit ranges are chosen."""
BACKENDS = ("dlip, packed", "onnxruntime", "OpenVINO")
"""Those that can serve: torch.compile would compile anew for every batch size."""
SIZES = {"caption": (1, 8), "image": (1, 8), "match": (1, 8), "rank": (64,)}
"""What is timed -> for how many images, or for "rank" texts of one image."""
ABILITIES = {"caption": "lm", "image": "itc", "match": "itm", "rank": "itm"}
ROUNDS = {1: 15}
"""Timed calls of each candidate by size; 5 for others."""


@dataclass(frozen=True)
class Candidate:
    """A backend in a precision."""

    backend: str
    precision: str
    ms: dict[str, float] = field(default_factory=dict, hash=False)
    """"caption, 8" -> median of captions of 8 images with 3 beams and 20 tokens, end to end. Empty if not timed."""
    error: float | None = None
    """Largest relative difference of its outputs from this package's in fp32. None if it cannot run the model."""
    reason: str = ""
    """Why it was not timed."""

    def __str__(self):
        return f"{self.backend} in {self.precision}"


class Optimized:
    """A model each of whose methods is run by the backend that was fastest at it, for about as many inputs.

    The methods are those of `VLM`, with numpy arrays for tensors.
    """

    def __init__(self, name: str, picks: dict[tuple[str, int], VLM | Runner]):
        """picks: of `SIZES`, something that is timed and a size -> what runs it."""
        self.name, self.picks = name, picks

    def pick(self, what: str, n: int) -> VLM | Runner:
        """What runs something of `SIZES` for n images or texts. Raises MissingAbility if the model cannot do it."""
        sizes = [size for name, size in self.picks if name == what]
        if not sizes:  # let any of them say why
            return next(iter(self.picks.values()))
        return self.picks[what, max((size for size in sizes if size <= n), default=sizes[0])]

    def caption(self, images: Sequence, *options, **named) -> list[str]:
        return self.pick("caption", len(images)).caption(images, *options, **named)

    def answer(self, images: Sequence, questions: Sequence[str], *options, **named) -> list[str]:
        return self.pick("caption", len(questions)).answer(images, questions, *options, **named)

    def match(self, images: Sequence, texts: Sequence[str]) -> np.ndarray:
        alone = len({id(image) for image in images}) == 1 < len(texts)
        return np.asarray(self.pick("rank" if alone else "match", len(texts)).match(images, texts))

    def similarity(self, images: Sequence, texts: Sequence[str]) -> np.ndarray:
        return self.embed_images(images) @ self.embed_texts(texts).T

    def embed_images(self, images: Sequence) -> np.ndarray:
        return np.asarray(self.pick("image", len(images)).embed_images(images))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self.pick("image", len(texts)).embed_texts(texts))

    @property
    def evaluators(self) -> dict[str, Callable]:
        """Those of `dlip.evaluate`, each with what runs its task."""
        ranking = "rank" if ("rank", 64) in self.picks else "image"
        picks = {task: self.pick(what, 64) for task, what in
                 (("retrieval", ranking), ("captioning", "caption"), ("vqa", "caption"))}  # fmt: skip
        return {
            task: partial(_evaluate, (EVALUATORS if isinstance(model, Runner) else EVALUATORS_OF_VLM)[task], model)
            for task, model in picks.items()
        }


@torch.inference_mode()
def _evaluate(evaluator: Callable, model: VLM | Runner, _: Optimized, *arguments, **options):
    return evaluator(model, *arguments, **options)


def optimize(vlm: VLM, tolerance: float = TOLERANCE, cache: str | Path = CACHE) -> tuple[Optimized, list[Candidate]]:
    """The model with each task run by its fastest candidate, and all candidates, the fastest at one caption first.

    Image states, ITM logits and log-probabilities of given tokens may differ from fp32's by `tolerance`
    (`relative_errors`). Converted models are kept in the folder `cache`; times are measured in turns, anew in every
    call, on the CPU.
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
    expected = reference(prepare("dlip", "fp32"), inputs, outputs)
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
            ready[candidate(error=error)] = backend.model
        else:  # also where it is NaN
            known = error if math.isfinite(error) else None
            others.append(candidate(error=known, reason=f"its outputs differ by {error:.2g}"))
    if not ready:
        reasons = "; ".join(f"{one}: {one.reason}" for one in others)
        raise UserError(f"no backend keeps the outputs within {tolerance:g} of fp32's ({reasons}); raise the tolerance")
    names, picks = {}, {}
    for what, n in ((what, n) for what, sizes in SIZES.items() if ABILITIES[what] in med.abilities for n in sizes):
        times = measure(list(ready.values()), what, n, inputs)
        for candidate, ms in zip(ready, times, strict=True):
            candidate.ms[f"{what}, {n}"] = ms
        fastest = min(ready, key=lambda candidate: candidate.ms[f"{what}, {n}"])
        names[str(fastest)], picks[what, n] = None, ready[fastest]
    timed = sorted(ready, key=lambda candidate: candidate.ms["caption, 1"])
    return Optimized(f"{vlm.name} by {' and '.join(names)}", picks), timed + others


def measure(models: list[VLM | Runner], what: str, n: int, inputs: Inputs) -> list[float]:
    """Median milliseconds of something of `SIZES` by each model, taken in turns; the first round only warms up."""
    images = inputs.pil[:1] * n if what == "rank" else inputs.pil[:n]
    texts = [Scenes("val")[i].captions[0] for i in range(n)]

    def call(model: VLM | Runner):
        if what == "caption":
            return model.caption(images, BEAMS, TOKENS)
        return model.embed_images(images) if what == "image" else model.match(images, texts)

    times = [[] for _ in models]
    for _ in range(1 + ROUNDS.get(n, 5)):
        for model, own in zip(models, times, strict=True):
            start = time.perf_counter()
            call(model)
            own.append(1000 * (time.perf_counter() - start))
    return [median(own[1:]) for own in times]
