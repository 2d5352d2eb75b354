"""Pick the fastest way to run each task of a model on this machine, among this package's precisions and the installed
libraries."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from dlip import __version__
from dlip.common.errors import UserError
from dlip.common.torch_private import onednn_has_bf16
from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import ImageInput, as_list
from dlip.export import backends
from dlip.export.backends.agreement import TOKENS, Inputs, outputs_of, reference, relative_errors
from dlip.export.backends.base import BEAMS, PRECISIONS
from dlip.export.onnx_runner import Runner
from dlip.export.runner_evaluate import MeasuredRunner
from dlip.models.fast.linear import refuse_packed
from dlip.models.fast.precision import require_fp32_blip
from dlip.models.protocol import Measured
from dlip.models.tasks import Reranker
from dlip.training.caches.disk import cache_key, delete_old_caches, locked
from dlip.training.config import CACHE_GB
from dlip.vlm import VLM, pairs

CACHE = "runs/cache/optimized"
"""Folder of converted models."""
VERSION = 2
"""Version of what is kept there."""
TOLERANCE = 0.05
SAMPLES = 16
"""Images by which 8-bit ranges are chosen."""
BACKENDS = ("dlip, packed", "onnxruntime", "OpenVINO")
"""Those that can serve: torch.compile would compile anew for every batch size."""
SIZES = {"caption": (1, 8), "image": (1, 8), "match": (1, 8), "rank": (64,)}
"""What is timed -> for how many images, or for "rank" texts of one image."""
ABILITY_OF = {"caption": "lm", "image": "itc", "match": "itm", "rank": "itm"}
MIN_ROUNDS, MAX_ROUNDS, ENOUGH_S = 5, 40, 20
"""Timed calls of each candidate: at least, at most, and seconds of all after which no more are needed."""


@dataclass(frozen=True)
class Candidate:
    """A backend in a precision."""

    backend: str
    precision: str
    ms: dict[str, float] = field(default_factory=dict)
    """"caption, 8" -> fastest call that captions 8 images, with 3 beams and 20 tokens, end to end. Empty if untimed."""
    error: float | None = None
    """Largest relative difference of its outputs from this package's in fp32. None if it cannot run the model."""
    reason: str = ""
    """Why it was not timed."""

    def __str__(self):
        return f"{self.backend} in {self.precision}"


class Optimized:
    """Methods of `VLM`, each run by the backend that was fastest for about as many inputs.

    Answers run on the fastest fp32 backend for captions: 8 bits may change answers more than the compared outputs show.
    Texts are embedded by the backend of images. Arrays are of numpy.
    """

    def __init__(self, name: str, picks: dict[tuple[str, int], VLM | Runner]):
        """picks: of `SIZES`, something that is timed and a size, or "answer" and a size -> what runs it."""
        self.name, self.picks = name, picks

    def pick(self, what: str, n: int) -> VLM | Runner:
        """What runs something for n images or texts; if the model cannot do it, anything, which says so."""
        sizes = [size for name, size in self.picks if name == what]
        nearest = min(sizes, key=lambda size: abs(size - n), default=None)
        return self.picks.get((what, nearest)) or self.picks["caption", 1]

    def caption(
        self, images: Iterable[ImageInput], num_beams: int = 3, max_new_tokens: int | None = None, batch_size: int = 64
    ) -> list[str]:
        """As `VLM.caption` of many images."""
        images = as_list(images, "image")
        model, parts = self.pick("caption", len(images)), range(0, len(images), batch_size)
        batches = (images[first : first + batch_size] for first in parts)
        return [text for some in batches for text in model.caption(some, num_beams, max_new_tokens)]

    def answer(
        self, images: Iterable[ImageInput], questions: Iterable[str], num_beams: int = 3, batch_size: int = 64
    ) -> list[str]:
        """As `VLM.answer` of many images."""
        images, questions = pairs(images, questions, "question")
        model, parts = self.pick("answer", len(images)), range(0, len(images), batch_size)
        batches = (slice(first, first + batch_size) for first in parts)
        return [text for part in batches for text in model.answer(images[part], questions[part], num_beams)]

    def match(self, images: Iterable[ImageInput], texts: Iterable[str]) -> np.ndarray:
        """ITM probabilities [N], as `VLM.match`."""
        images, texts = pairs(images, texts, "text")
        alone = len({id(image) for image in images}) == 1 < len(texts)
        return np.asarray(self.pick("rank" if alone else "match", len(texts)).match(images, texts))

    def similarity(self, images: Iterable[ImageInput], texts: Iterable[str]) -> np.ndarray:
        """Cosines [I, T], fp32."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    def embed_images(self, images: Iterable[ImageInput]) -> np.ndarray:
        """Unit vectors [I, E], fp32."""
        images = as_list(images, "image")
        return _as_fp32(self.pick("image", len(images)).embed_images(images))

    def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Unit vectors [T, E], fp32."""
        texts = as_list(texts, "text")
        return _as_fp32(self.pick("image", len(texts)).embed_texts(texts))

    @property
    def steps(self) -> int:
        """Decoder steps that it has computed."""
        return sum(model.steps for model in set(self.picks.values()))

    # --- for `dlip.evaluate`, as in `dlip.models.protocol.Measured` ---------------------------------------------------

    @property
    def ranker(self) -> Measured:
        """What runs retrieval."""
        model = self.pick("rank" if ("rank", 64) in self.picks else "image", 64)
        return MeasuredRunner(model, self.name) if isinstance(model, Runner) else model

    @property
    def abilities(self) -> frozenset[str]:
        return self.ranker.abilities

    @property
    def temperature(self) -> float:
        return self.ranker.temperature

    def evaluating(self):
        return torch.inference_mode()

    def encode(self, images: list[ImageInput], reranker: Reranker | None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.ranker.encode(images, reranker)

    def text_ids(self, texts: list[str], reranker: Reranker | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.ranker.text_ids(texts, reranker)

    def embed_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.ranker.embed_ids(ids, mask)

    def pair_logits(
        self, states: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, reranker: Reranker
    ) -> torch.Tensor:
        return self.ranker.pair_logits(states, ids, mask, reranker)


def _as_fp32(vectors: torch.Tensor | np.ndarray) -> np.ndarray:
    return vectors.float().numpy() if isinstance(vectors, torch.Tensor) else vectors


def optimize(vlm: VLM, tolerance: float = TOLERANCE, cache: str | Path = CACHE) -> tuple[Optimized, list[Candidate]]:
    """The model with each task run by its fastest candidate, and all candidates, the fastest at one caption first.

    Image states, ITM logits and log-probabilities of given tokens may differ from fp32's by `tolerance`
    (`relative_errors`). Converted models are kept in the folder `cache`, those of earlier models up to `CACHE_GB`;
    times are measured in turns, anew in every call, on the CPU. Raises UserError for a model in another precision, for
    one that is not a BLIP, is made of several or cannot write captions, and where no candidate is within the tolerance.
    """
    med = require_fp32_blip(vlm.med, "optimize").model_for("lm")
    refuse_packed(med)
    packages = {"torch"}.union(*(backends.backend(name).packages for name in BACKENDS))
    about = backends.releases(sorted(packages)) | {
        "dlip": __version__, "version": VERSION, "model": med.config.to_dict(), "abilities": sorted(med.abilities),
        "tokenizer": vlm.tokenizer.rules(), "samples": f"{SAMPLES} scenes of val",
    }  # fmt: skip
    folder = Path(cache) / cache_key(about, med)
    with locked(folder):
        delete_old_caches(folder, CACHE_GB)
        vlm.save(folder / "model")
    inputs = Inputs(med.config, SAMPLES)

    def prepare(name: str, precision: str) -> backends.Backend:
        backend = backends.make(name, precision)
        with locked(folder):  # another process may convert the same model
            return backend.prepare(folder / "model", folder / f"{name}-{precision}", inputs.images)

    outputs = outputs_of(vlm)
    expected = reference(prepare("dlip", "fp32"), inputs, outputs)
    ready, others = {}, []  # backend and precision -> model and error
    for variant in product(BACKENDS, PRECISIONS):
        candidate = partial(Candidate, *variant)
        if "bf16" in variant and not onednn_has_bf16():
            others.append(candidate(reason="this CPU has no instructions for bf16"))
            continue
        try:
            backend = prepare(*variant)
            errors = relative_errors(expected, inputs.outputs(backend, outputs))
            error = float(np.max([*errors.values()]))  # NaN if one is
        except Exception as mistake:  # a library raises nearly anything
            others.append(candidate(reason=str(mistake)))
            continue
        if error <= tolerance:
            ready[variant] = backend.model, error
        else:  # also where it is NaN
            known = error if math.isfinite(error) else None
            others.append(candidate(error=known, reason=f"its outputs differ by {error:.2g}"))
    if not ready:
        reasons = "; ".join(f"{one}: {one.reason}" for one in others)
        raise UserError(f"no backend keeps the outputs within {tolerance:g} of fp32's ({reasons}); raise the tolerance")
    models = [model for model, _ in ready.values()]
    sizes = [(what, n) for what, counts in SIZES.items() if ABILITY_OF[what] in med.abilities for n in counts]
    times = {size: measure(models, *size, inputs) for size in sizes}  # ms of each model
    timed = [
        Candidate(*variant, {f"{what}, {n}": ms[i] for (what, n), ms in times.items()}, error)
        for i, (variant, (_, error)) in enumerate(ready.items())
    ]
    fastest = {size: ms.index(min(ms)) for size, ms in times.items()}
    exact = [i for i, one in enumerate(timed) if one.precision == "fp32"] or range(len(timed))
    if "vqa" in med.abilities:
        fastest |= {("answer", n): min(exact, key=times["caption", n].__getitem__) for n in SIZES["caption"]}
    name = f"{vlm.name} by {' and '.join(dict.fromkeys(str(timed[i]) for i in fastest.values()))}"
    ranked = sorted(timed, key=lambda candidate: candidate.ms["caption, 1"])
    return Optimized(name, {size: models[i] for size, i in fastest.items()}), ranked + others


def measure(models: list[VLM | Runner], what: str, n: int, inputs: Inputs) -> list[float]:
    """Milliseconds of the fastest call of each model for something of `SIZES`, taken in turns.

    The fastest, because what else runs on a machine can only slow a call: medians of two runs disagree more.
    """
    images = inputs.pil[:1] * n if what == "rank" else inputs.pil[:n]
    texts = [Scenes("val")[i].captions[0] for i in range(n)]

    def call(model: VLM | Runner):
        if what == "caption":
            return model.caption(images, BEAMS, TOKENS)
        return model.embed_images(images) if what == "image" else model.match(images, texts)

    seconds = [[] for _ in models]
    while len(seconds[0]) < MAX_ROUNDS and (len(seconds[0]) < MIN_ROUNDS or sum(map(sum, seconds)) < ENOUGH_S):
        for model, own in zip(models, seconds, strict=True):
            start = time.perf_counter()
            call(model)
            own.append(time.perf_counter() - start)
    return [1000 * min(own) for own in seconds]
