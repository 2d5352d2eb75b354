"""Cost of a run before it starts: a few images go through one real step, and the rest is extrapolated.

FLOPs are 2 per multiply-accumulate of every matrix product that is executed, forward and backward, the teacher's
included. Memory is that of weights, gradients, two moments (of which Muon's matrices have one), the teacher and the
tensors saved for backward; temporary tensors within an operation and the libraries' own memory are not counted.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dlip.common import machine
from dlip.common.text import plural, three_digits
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.data.loader import ResumableBatchSampler
from dlip.training.config import TrainConfig
from dlip.training.layer_modes import set_layer_modes
from dlip.training.learner import Learner
from dlip.training.optimizer import layer_matrices
from dlip.training.teacher import Teacher
from dlip.vlm import VLM

PROBE_IMAGES = 4
"""Images of the first probe; more follow until a probe takes `MIN_PROBE_S` and its time says something."""
MIN_PROBE_S = 0.5
UTILIZATION = 0.35
"""Assumed share of a card's peak that a run reaches."""
PEAK_TFLOPS = {
    "H100 SXM": {"fp32": 67.0, "bf16": 989.0, "fp16": 989.0},
    "A100":     {"fp32": 19.5, "bf16": 312.0, "fp16": 312.0},
    "RTX 4090": {"fp32": 82.6, "bf16": 165.0, "fp16": 165.0},
    "L4":       {"fp32": 30.3, "bf16": 121.0, "fp16": 121.0},
    "V100":     {"fp32": 15.7, "bf16": 15.7,  "fp16": 125.0},
    "T4":       {"fp32": 8.1,  "bf16": 8.1,   "fp16": 65.0},
}  # fmt: skip
"""Card -> its dense peak by `TrainConfig.precision`, as its maker states; V100 and T4 compute bf16 in fp32."""


@dataclass
class Step:
    """Cost of one step."""

    images: int
    flops: float
    saved_bytes: int
    """Tensors saved for backward, without the weights."""
    seconds: float
    """On this machine: forward, backward and the teacher, without data loading and optimizer."""


def probe(learner: Learner, teacher: Teacher | None, batch: Batch, config: TrainConfig, step: int) -> Step:
    """Measure the step's cost on a batch in three runs: for memory and warm-up, for time, for FLOPs."""
    weights = {p.untyped_storage().data_ptr() for p in (*learner.parameters(), *learner.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def once() -> None:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        with torch.autocast(batch.image_id.device.type, half, enabled=half is not None):
            losses = learner(batch, teacher, step, 0.0)
            total = sum(config.weights[term] * loss for term, loss in losses.items())
        total.backward()
        learner.zero_grad()

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        once()
    machine.synchronize(batch.image_id.device)
    started = time.perf_counter()
    once()
    machine.synchronize(batch.image_id.device)
    seconds = time.perf_counter() - started
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it cannot count fused kernels
        once()
    return Step(len(batch), float(counter.get_total_flops()), sum(kept.values()), seconds)


def budget(student: VLM, dataset, config: TrainConfig, teacher: VLM | None = None) -> dict:
    """Cost of `dlip.training.loop.train` with the same arguments; nothing is written.

    Returns {"steps", "images" (seen, with repetition), "epochs", "train_images", "flops", "memory_gb" by purpose,
    "hours" for "this machine" and for cards, "utilization", "precision"}. Terms count from the step at which they join.
    A teacher is counted even if its outputs are cached, and a backbone even if its features are. Hours are of one
    process.
    """
    config = config.for_dataset(len(dataset))
    size = max(vlm.image_size for vlm in (student, teacher) if vlm)
    collate = Collate(student.tokenizer, size, student.med.config.max_text, questions=config.questions)
    sampler = ResumableBatchSampler(
        len(dataset), config.batch_size, 1, config.seed, config.accumulate, order=dataset.order
    )
    device = machine.device()
    batch = collate([dataset[i] for _, i in next(iter(sampler))]).to(device)
    tags = dataset[0].tags
    with torch.random.fork_rng():
        learner = Learner(student, teacher, config, 0 if tags is None else tags.shape[-1]).to(device).train()
        frozen_teacher = Teacher(teacher.med.to(device)) if teacher else None
        set_layer_modes(student.med, config.gradient_checkpointing)
        starts = sorted({0, *(step for step in config.start_term_at.values() if step < config.steps)})
        steps = [extrapolate(learner, frozen_teacher, batch, config, start) for start in starts]
        set_layer_modes(student.med.eval())
    lengths = [end - start for start, end in zip(starts, [*starts[1:], config.steps], strict=True)]
    flops = sum(length * config.accumulate * one.flops for length, one in zip(lengths, steps, strict=True))
    seconds = sum(length * config.accumulate * one.seconds for length, one in zip(lengths, steps, strict=True))
    saved = max(one.saved_bytes for one in steps)
    peaks = {card: by_precision[config.precision] * 1e12 for card, by_precision in PEAK_TFLOPS.items()}
    hours = {card: flops / (peak * UTILIZATION) / 3600 for card, peak in peaks.items()}
    seen = config.steps * config.batch_size
    return {
        "steps": config.steps, "images": seen, "epochs": seen / len(dataset), "train_images": len(dataset),
        "flops": flops,
        "memory_gb": {name: size / 1e9 for name, size in (*_resident(learner, teacher, config), ("saved", saved))},
        "hours": {"this machine": seconds / 3600, **hours}, "utilization": UTILIZATION, "precision": config.precision,
    }  # fmt: skip


def extrapolate(learner: Learner, teacher: Teacher | None, batch: Batch, config: TrainConfig, step: int) -> Step:
    """Cost of the step on the whole batch, from probes of some of its images.

    FLOPs and memory are linear in the number of images, with an offset (a queue, weights cast to bf16) that a probe of
    half as many images shows. Time is taken as proportional.
    """
    full = probe(learner, teacher, first_images(batch, PROBE_IMAGES), config, step)
    while full.images < len(batch) and full.seconds <= MIN_PROBE_S:
        full = probe(learner, teacher, first_images(batch, 4 * full.images), config, step)
    if full.images == len(batch):
        return full
    half = probe(learner, teacher, first_images(batch, full.images // 2), config, step)
    factor = (len(batch) - full.images) / (full.images - half.images)
    return Step(
        len(batch), full.flops + factor * (full.flops - half.flops),
        round(full.saved_bytes + factor * (full.saved_bytes - half.saved_bytes)),
        full.seconds * len(batch) / full.images,
    )  # fmt: skip


def first_images(batch: Batch, images: int) -> Batch:
    """The first images of a batch, padded as there, with their questions, at least one."""
    if len(batch) <= images:
        return batch
    questions = batch.question_rows.lt(images).nonzero()[:, 0]
    by_question = ("question_ids", "question_mask", "answer_ids", "answer_mask", "question_rows")
    rows = dict.fromkeys(by_question, questions if len(questions) else [0])
    changes = {name: value[rows.get(name, slice(images))] for name, value in vars(batch).items() if value is not None}
    changes["question_rows"] = changes["question_rows"].clamp(max=images - 1)
    return replace(batch, **changes)


def _resident(learner: Learner, teacher: VLM | None, config: TrainConfig) -> list[tuple[str, int]]:
    """Bytes held during the whole run, by purpose."""

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    trained = size(p for p in learner.parameters() if p.requires_grad)
    one_moment = size(layer_matrices(learner.med)) if config.optimizer == "muon" else 0
    return [
        ("student", size([*learner.parameters(), *learner.buffers()])), ("gradients", trained),
        ("optimizer", 2 * trained - one_moment), ("teacher", size(teacher.med.parameters()) if teacher else 0),
    ]  # fmt: skip


def text(cost: dict) -> str:
    """A `budget` for the terminal."""
    lines = [
        f"{plural(cost['steps'], 'step')}, {plural(cost['images'], 'image')}: "
        f"{cost['epochs']:.1f} epochs of {cost['train_images']:,}",
        f"{cost['flops']:.3g} FLOPs, forward and backward, the teacher's included",
        f"{sum(cost['memory_gb'].values()):.2f} GB of memory: "
        + ", ".join(f"{name} {size:.2f}" for name, size in cost["memory_gb"].items()),
        f"hours, in {cost['precision']}, of cards at {cost['utilization']:.0%} of their peak:",
    ]
    return "\n".join([*lines, *(f"  {name:14}{three_digits(hours):>12}" for name, hours in cost["hours"].items())])
