"""Measured latency of a task: end to end on tensors (without preprocessing), and by module.

After warm-up, with the device synchronized, on random images and tokens. Every generated text has the same number of
tokens, so that models do the same work. Compared models take turns call by call, so that a busy machine slows all
alike.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dlip.common import machine
from dlip.common.errors import UserError
from dlip.cost.count import NEW_TOKENS, TEXT_TOKENS
from dlip.models.generate import Decoder, generate
from dlip.models.med import Med
from dlip.models.protocol import Model
from dlip.models.tasks import TASKS
from dlip.vlm import VLM

Progress = Callable[[float], object] | None
"""Called with the fraction done, 0 to 1, after each timed call."""


class Workload:
    """One task of a model on a batch of random inputs; calling it runs the task.

    retrieval: `batch` images, each with a text of `text_tokens`: ITC similarity and, with `matching`, ITM score (None:
    if the model has it). captioning: `tokens` new tokens. vqa: a question of `text_tokens`, an answer of `tokens`.
    tokens: None for `NEW_TOKENS`. Raises UserError for an unknown task, for one that the model cannot do, for a CLIP or
    SigLIP, or where the model has too few positions.
    """

    def __init__(
        self,
        model: Model,
        task: str,
        batch: int = 1,
        beams: int = 3,
        tokens: int | None = None,
        text_tokens: int = TEXT_TOKENS,
        matching: bool | None = None,
    ):
        if task not in TASKS:
            raise UserError(f"there is no task {task!r}; choose one of {', '.join(TASKS)}")
        self.matching = "itm" in model.abilities if matching is None else matching
        ability = "itc" if task == "retrieval" and not self.matching else TASKS[task].abilities[-1]
        self.med: Med = model.model_for(ability).eval()
        if self.med.stock:
            raise UserError("a CLIP or SigLIP cannot be timed; choose a BLIP")
        c, device, dtype = self.med.config, self.med.temp.device, self.med.temp.dtype
        prompt = (c.dec_id, *(c.prompt_ids if task == "captioning" else ()))
        self.task, self.beams = task, beams
        self.tokens = 0 if task == "retrieval" else tokens or NEW_TOKENS[task]
        longest = max(len(prompt) + self.tokens, text_tokens if task != "captioning" else 0)
        if longest > c.max_positions:
            raise UserError(f"{longest} tokens exceed the model's {c.max_positions} positions; use fewer")
        self.settings = {
            "task": task,
            "batch": batch,
            "beams": beams if self.tokens else None,
            "tokens": self.tokens or None,
            "text_tokens": text_tokens if task != "captioning" else None,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "dtype": str(dtype).removeprefix("torch."),
        }
        source = torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch, 3, c.image_size, c.image_size), dtype=torch.uint8, generator=source)
        self.pixels = self.med.normalize(images.to(device))
        self.ids = torch.randint(c.vocab_size, (batch, text_tokens), generator=source).to(device)
        self.mask = torch.ones_like(self.ids, dtype=torch.bool)
        self.prompt = torch.tensor([prompt], device=device).expand(batch, -1)

    @torch.inference_mode()
    def __call__(self) -> None:
        states = self.image()
        if self.task == "retrieval":
            texts = self.med.project_text(self.text())
            torch.matmul(self.med.project_image(states), texts.T)  # [B, B] similarities
            if self.matching:
                self.med.match_logits(self.fusion(states))
        elif self.task == "captioning":
            self.decoder(states, None)
        else:
            self.decoder(self.med.question_states(self.fusion(states)), self.mask)

    def image(self) -> Tensor:
        return self.med.encode_image(self.pixels)

    def text(self) -> Tensor:
        return self.med.encode_text(self.ids, self.mask)

    def fusion(self, states: Tensor) -> Tensor:
        return self.med.fuse(self.ids, self.mask, states)

    def decoder(self, context: Tensor, mask: Tensor | None) -> list[list[int]]:
        return generate(self.med, context, mask, self.prompt, self.beams, self.tokens, min_new_tokens=self.tokens)

    @torch.inference_mode()
    def modules(self) -> dict[str, Callable[[], object]]:
        """Name -> a call of that module alone, for the modules that the task runs."""
        states, calls = self.image(), {"image": self.image}
        if self.task == "captioning":
            return calls | self._decoder_calls(states, None)
        fusion = {"fusion": lambda: self.fusion(states)}
        if self.task == "retrieval":
            return calls | {"text": self.text} | (fusion if self.matching else {})
        return calls | fusion | self._decoder_calls(self.med.question_states(self.fusion(states)), self.mask)

    def _decoder_calls(self, context: Tensor, mask: Tensor | None) -> dict[str, Callable[[], object]]:
        """decoder: the whole text. decoder_step: one token of every beam, after half of the text."""
        rows, length = len(context) * self.beams, self.prompt.shape[1] + self.tokens
        decoder = Decoder(self.med, context, mask, rows, length)
        decoder.cache.store.zero_()
        token = self.prompt[:1, :1].expand(rows, 1)

        def step():
            decoder.cache.length = length // 2
            decoder(token)

        return {"decoder": lambda: self.decoder(context, mask), "decoder_step": step}


def workloads(models: dict[str, VLM], task: str, **size) -> dict[str, Workload]:
    """The same task of every model: retrieval without ITM's score if one of them lacks it.

    Raises UserError as `Workload`, and for models on different devices, whose times cannot be compared.
    """
    matching = all("itm" in vlm.abilities for vlm in models.values())
    work = {name: Workload(vlm.med, task, matching=matching, **size) for name, vlm in models.items()}
    if len({load.pixels.device for load in work.values()}) > 1:
        places = ", ".join(f"{name} on {load.pixels.device}" for name, load in work.items())
        raise UserError(f"times on different devices cannot be compared: {places}; move the models to one of them")
    return work


@torch.inference_mode()
def compare_latency(
    models: dict[str, VLM],
    task: str = "captioning",
    repeats: int = 30,
    warmup: int = 5,
    progress: Progress = None,
    **size,
) -> dict:
    """{"models": name -> times and settings, "speedup": name -> median of the first model / median of this one}.

    Times are median "p50_ms" and "p95_ms" of the task and of each of its "modules"; `size` as in `Workload`. In each of
    `warmup` + `repeats` rounds the models take turns at the task, then at each module. Raises UserError as `workloads`.
    """
    work = workloads(models, task, **size)
    modules = {name: {"total": load, **load.modules()} for name, load in work.items()}
    parts = next(iter(modules.values()))
    calls = {(part, name): modules[name][part] for part in parts for name in work}
    times, out = _in_turns(calls, warmup, repeats, work, progress), {}
    for name, load in work.items():
        spread = {part: _percentiles(times[part, name]) for part in parts}
        settings = {**load.settings, "repeats": repeats, "warmup": warmup}
        out[name] = {**settings, **spread.pop("total"), "modules": spread}
    first = next(iter(out.values()))["p50_ms"]
    return {"models": out, "speedup": {name: first / one["p50_ms"] for name, one in out.items()}}


@torch.inference_mode()
def throughput(
    models: dict[str, VLM],
    task: str = "captioning",
    batches: Sequence[int] = (1, 4, 16),
    repeats: int = 5,
    progress: Progress = None,
    **size,
) -> dict[str, list[float]]:
    """Name -> items per second at each batch size: the batch size / the median time of the task end to end.

    The models take turns at each batch size, after one warm-up round. Raises UserError as `workloads`.
    """
    out = {name: [] for name in models}
    for place, batch in enumerate(batches):
        work = workloads(models, task, batch=batch, **size)
        report = progress and (lambda done, place=place: progress((place + done) / len(batches)))
        for name, ms in _in_turns(work, 1, repeats, work, report).items():
            out[name].append(1000 * batch / float(np.median(ms)))
    return out


def _in_turns(
    calls: dict, warmup: int, rounds: int, work: dict[str, Workload], progress: Progress
) -> dict[Hashable, list[float]]:
    """Milliseconds of each call in each of `rounds`, after `warmup` others; in a round every call runs once."""
    device, times = next(iter(work.values())).pixels.device, {key: [] for key in calls}
    turns = list(product(range(warmup + rounds), calls))
    for done, (turn, key) in enumerate(turns, 1):
        ms = _time(calls[key], device)
        if turn >= warmup:
            times[key].append(ms)
        if progress:
            progress(done / len(turns))
    return times


def _time(call: Callable[[], object], device: torch.device) -> float:
    machine.synchronize(device)
    start = time.perf_counter()
    call()
    machine.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def _percentiles(ms: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(ms, (50, 95))
    return {"p50_ms": float(p50), "p95_ms": float(p95)}
