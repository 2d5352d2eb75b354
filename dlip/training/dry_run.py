"""What a run would cost, found before it starts: a few pictures go through one real step, and are multiplied.

FLOPs are 2 per multiply-accumulate of every matrix product that is executed, forward and backward, the teacher's among
them. Memory is what stays: weights, gradients, the optimiser's two moments, the teacher, and what backward keeps of a
micro-batch; the libraries' own, and what lives only within an operation, are not in it.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dlip.common.text import plural, three_digits
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.data.loader import ResumableBatchSampler
from dlip.training.config import TrainConfig
from dlip.training.distillation import Teacher
from dlip.training.layer_modes import set_layer_modes
from dlip.training.learner import Learner
from dlip.vlm import VLM

PICTURES = 4
"""That are tried at first; more, where they take less than `ENOUGH_S` and so hardly more than starting the kernels."""
ENOUGH_S = 0.5
UTILIZATION = 0.35
"""Share of a card's peak that a run is taken to reach: an assumption."""
PEAK_TFLOPS = {
    # card       fp32   bf16 or fp16, dense, as their makers print them
    "H100 SXM": (67.0, 989.0),
    "A100":     (19.5, 312.0),
    "RTX 4090": (82.6, 165.0),
    "L4":       (30.3, 121.0),
    "V100":     (15.7, 125.0),
    "T4":       (8.1, 65.0),
}  # fmt: skip


@dataclass
class Step:
    """What one step of some pictures takes."""

    pictures: int
    flops: float
    saved_bytes: int
    """Kept for backward, weights left out."""
    seconds: float
    """On this machine, forward, backward and the teacher; without reading pictures and without the optimiser."""


def probe(learner: Learner, teacher: Teacher | None, batch: Batch, config: TrainConfig, step: int) -> Step:
    """Does the given step of a batch, three times: to warm up and see what it keeps, to time it, and to count it."""
    own = {p.untyped_storage().data_ptr() for p in (*learner.parameters(), *learner.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
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
    began = time.perf_counter()
    once()
    seconds = time.perf_counter() - began
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which sees into no fused kernel
        once()
    return Step(len(batch), float(counter.get_total_flops()), sum(kept.values()), seconds)


def budget(student: VLM, dataset, config: TrainConfig, teacher: VLM | None = None) -> dict:
    """What `dlip.training.loop.train` would take with the same arguments; nothing is written.

    {"steps", "pictures" (that are seen, with repetition), "epochs", "train_images", "flops", "memory_gb" by what
    takes it, "hours": {"this machine", ...cards}, "utilization", "precision"}. The pads of the tried pictures are those
    of a whole batch. Terms that join later are counted from then on. A teacher whose outputs are cached is counted all
    the same. Where several processes share the work, hours are those of all of them in turn.
    """
    size = max(vlm.med.config.image_size for vlm in (student, teacher) if vlm)
    collate = Collate(student.tokenizer, size, True, student.med.config.max_text, questions=config.questions)
    micro = config.batch_size // config.accumulate
    drawn = ResumableBatchSampler(len(dataset), micro, 1, config.seed, order=getattr(dataset, "order", None))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    batch = collate([dataset[i] for _, i in next(iter(drawn))]).to(device)
    kinds = dataset[0].tags
    with torch.random.fork_rng():
        learner = Learner(student, teacher, config, 0 if kinds is None else len(kinds)).to(device).train()
        guarded = Teacher(teacher.med.to(device)) if teacher else None
        set_layer_modes(student.med, config.gradient_checkpointing)
        starts = sorted({0, *(step for step in config.joins.values() if step < config.steps)})
        steps = [tried(learner, guarded, batch, config, start) for start in starts]
        set_layer_modes(student.med.eval())
    lengths = [end - start for start, end in zip(starts, [*starts[1:], config.steps], strict=True)]
    flops = sum(length * config.accumulate * one.flops for length, one in zip(lengths, steps, strict=True))
    seconds = sum(length * config.accumulate * one.seconds for length, one in zip(lengths, steps, strict=True))
    saved = max(one.saved_bytes for one in steps)
    half = config.precision != "no"
    hours = {card: flops / (peaks[half] * 1e12 * UTILIZATION) / 3600 for card, peaks in PEAK_TFLOPS.items()}
    seen = config.steps * config.batch_size
    return {
        "steps": config.steps, "pictures": seen, "epochs": seen / len(dataset), "train_images": len(dataset),
        "flops": flops, "memory_gb": {name: size / 1e9 for name, size in (*_held(learner, teacher), ("saved", saved))},
        "hours": {"this machine": seconds / 3600, **hours}, "utilization": UTILIZATION, "precision": config.precision,
    }  # fmt: skip


def tried(learner: Learner, teacher: Teacher | None, batch: Batch, config: TrainConfig, step: int) -> Step:
    """A step of the whole batch, told from `probe` of some of it, as many as it takes for the time to mean something.

    FLOPs and memory grow with the pictures from what any number takes (a queue, weights cast to bf16), which half as
    many show; time is in proportion.
    """
    pictures = PICTURES
    while True:
        some = probe(learner, teacher, first(batch, pictures), config, step)
        if some.pictures == len(batch):
            return some
        if some.seconds > ENOUGH_S:
            break
        pictures *= 4
    half = probe(learner, teacher, first(batch, some.pictures // 2), config, step)
    more = (len(batch) - some.pictures) / (some.pictures - half.pictures)
    return Step(
        len(batch), some.flops + more * (some.flops - half.flops),
        round(some.saved_bytes + more * (some.saved_bytes - half.saved_bytes)),
        some.seconds * len(batch) / some.pictures,
    )  # fmt: skip


def first(batch: Batch, pictures: int) -> Batch:
    """The first pictures of a batch, as padded as they are there, with their questions, but at least one."""
    if len(batch) <= pictures:
        return batch
    questions = range(pictures) if batch.question_rows is None else batch.question_rows.lt(pictures).nonzero()[:, 0]
    rows = dict.fromkeys(("question_ids", "question_mask", "answer_ids", "answer_mask", "question_rows"), questions)
    if not len(questions):
        rows = dict.fromkeys(rows, [0])
    changes = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if value is not None:
            changes[field.name] = value[rows.get(field.name, slice(pictures))]
    if changes.get("question_rows") is not None:
        changes["question_rows"] = changes["question_rows"].clamp(max=pictures - 1)
    return replace(batch, **changes)


def _held(learner: Learner, teacher: VLM | None) -> Collection[tuple[str, int]]:
    def size(module: nn.Module, trained: bool | None = None) -> int:
        tensors = [p for p in module.parameters() if trained is None or p.requires_grad is trained]
        return sum(p.numel() * p.element_size() for p in tensors)

    trained = size(learner, True)
    return [
        ("student", size(learner) + sum(b.numel() * b.element_size() for b in learner.buffers())),
        ("gradients", trained), ("optimiser", 2 * trained), ("teacher", size(teacher.med) if teacher else 0),
    ]  # fmt: skip


def text(found: dict) -> str:
    """A `budget` as lines for a terminal."""
    lines = [
        f"{plural(found['steps'], 'step')}, {plural(found['pictures'], 'picture')}: "
        f"{found['epochs']:.1f} epochs of {found['train_images']:,}",
        f"{found['flops']:.3g} FLOPs, forward and backward, the teacher's among them",
        f"{sum(found['memory_gb'].values()):.2f} GB of memory: "
        + ", ".join(f"{name} {size:.2f}" for name, size in found["memory_gb"].items()),
        f"hours, in {'fp32' if found['precision'] == 'no' else found['precision']}, of cards at "
        f"{found['utilization']:.0%} of their peak:",
    ]
    return "\n".join([*lines, *(f"  {name:14}{three_digits(hours):>12}" for name, hours in found["hours"].items())])
