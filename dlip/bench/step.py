"""A distillation step of the paper's size: DLIP-Small under a random BLIP-Base, at 224 px, all terms of the paper.

Each variant runs in a process of its own, so that its memory is its own; the processes take turns step by step.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import torch
import torch.nn.functional as F

from dlip import data as data_sets
from dlip.bench import row
from dlip.common.errors import UserError
from dlip.cost.memory import peak_bytes
from dlip.data.collate import Collate
from dlip.data.tokenizer import Tokenizer
from dlip.experiments.run import new_model, new_student, texts_of
from dlip.training.config import TrainConfig
from dlip.training.distillation import Teacher
from dlip.training.dry_run import budget
from dlip.training.layer_modes import can_compile, set_layer_modes
from dlip.training.learner import Learner
from dlip.training.optimizer import make_optimizer
from dlip.training.teacher_cache import TeacherCache
from dlip.training.terms import AT, HR, VLP

WORDS = 30_524
TOKENS = 30


@dataclass(frozen=True)
class Variant:
    precision: str = "no"
    padded: bool = False
    """Texts of `TOKENS` tokens, whatever they need."""
    cached: bool = False
    """The teacher's outputs come from the disk, where they are already."""
    compiled: bool = False


VARIANTS = {
    "plain": Variant(padded=True),
    "fp32": Variant(),
    "bf16": Variant("bf16"),
    "bf16, cached teacher": Variant("bf16", cached=True),
}
COMPILED = {"bf16, compiled": Variant("bf16", compiled=True)}
"""Where layers can be compiled."""


def run(data: str = "scenes", rounds: int = 3, batch: int = 16) -> tuple[dict, list[dict]]:
    """A step of `batch` pictures in each variant: forward, backward, the teacher's part and the optimizer's.

    plain: fp32, texts of 30 tokens, passes as few as in the others. The losses of the first step are compared before
    anything is told: fp32's are plain's to within 0.1%, all others to within 10%. peak_gb: the most memory that the
    process held, or of a GPU what its allocator did; dry_run_gb and dry_run_s: what `dlip.training.dry_run` says;
    tflops:
    achieved, of the FLOPs that it counts, among them a teacher's, so that a cached one has none. Raises UserError where
    there are no such data, and where losses differ.
    """
    split = "train" if data != "scenes" else "train-small"
    data_sets.open(data, split, batch)
    variants = VARIANTS | (COMPILED if can_compile() else {})
    context, workers, costs = get_context("spawn"), {}, {}
    for name, variant in variants.items():
        ours, theirs = context.Pipe()
        job = (theirs, data, split, batch, variant, torch.get_num_threads())
        process = context.Process(target=_serve, args=job, daemon=True)
        process.start()
        theirs.close()
        workers[name] = ours, process
        costs[name] = _told(name, ours)  # before the next begins, as it times a step
    times, losses = {name: [] for name in workers}, {}
    for turn in range(1 + rounds):
        for name, (ours, _) in workers.items():
            ours.send("step")
            seconds, found = _told(name, ours)
            if turn:
                times[name].append(seconds)
            else:
                losses[name] = found
                agree(losses)
    rows, first = [], next(iter(times.values()))
    for name, (ours, process) in workers.items():
        ours.send(None)
        peak, cost = _told(name, ours), costs[name]
        process.join()
        spent = None if variants[name].cached else round(cost["flops"] / median(times[name]) / 1e12, 3)
        rows.append(row(
            name, times[name], first, "s", images_per_s=round(batch / median(times[name]), 2), tflops=spent,
            peak_gb=peak and round(peak / 1e9, 2), dry_run_gb=round(sum(cost["memory_gb"].values()), 2),
            dry_run_s=round(3600 * cost["hours"]["this machine"], 2),
        ))  # fmt: skip
    settings = {
        "teacher": "blip-base, random", "student": "dlip-small", "image_size": 224, "batch": batch,
        "terms": "vlp,hr,at", "data": data.rstrip("/").split("/")[-1], "rounds": rounds,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return settings, rows


def agree(losses: dict[str, dict[str, float]]) -> None:
    """Raises UserError where a variant's losses by term are not those of the first, as `run` says."""
    (_, first), *others = losses.items()
    for name, found in others:
        for term, loss in found.items():
            if not abs(loss - first[term]) <= (1e-3 if name == "fp32" else 0.1) * max(1, abs(first[term])):
                raise UserError(
                    f"nothing is told: {term} is {loss:.4g} in a step {name}, {first[term]:.4g} in a plain one"
                )


def _told(name: str, worker: Connection):
    try:
        return worker.recv()
    except EOFError:
        raise UserError(f"the process of {name} ended, for want of memory maybe; free some, or take a GPU") from None


def _serve(boss: Connection, data: str, split: str, batch: int, variant: Variant, threads: int) -> None:
    """Sends what a step is said to cost, then a step's seconds and losses whenever asked, and in the end the memory."""
    torch.set_num_threads(threads)
    dataset = data_sets.open(data, split, 4 * batch)
    teacher = new_model("blip-base", words(dataset), 0)
    student = new_student("dlip-small", teacher, 0)
    weights = {**VLP, **HR, **AT} | ({} if dataset[0].questions else {"vqa": 0.0})
    config = TrainConfig(steps=1, batch_size=batch, precision=variant.precision, weights=weights)
    boss.send(budget(student, dataset, config, teacher))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    learner = Learner(student, teacher, config).to(device).train()
    guarded, adamw = Teacher(teacher.med.to(device)), make_optimizer(learner, config)
    for model in (learner, guarded):
        set_layer_modes(model, compiled=variant.compiled)
    collate = Collate(student.tokenizer, 224, True, student.med.config.max_text)
    ready = replace(collate([dataset[i] for i in range(batch)]), rows=torch.arange(batch)).to(device)
    if variant.padded:
        more = (0, max(0, TOKENS - ready.ids.shape[1]))
        ready = replace(
            ready, ids=F.pad(ready.ids, more, value=student.med.config.pad_id), mask=F.pad(ready.mask, more)
        )
    if variant.cached:
        place = tempfile.TemporaryDirectory()
        guarded = TeacherCache(place.name, guarded, data_sets.open(data, split, batch), collate)
    torch.manual_seed(0)  # of the negatives that are drawn
    while boss.recv():
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.precision == "bf16"):
            losses = learner(ready, guarded, 0, 0.0)
            total = sum(weights[term] * loss for term, loss in losses.items())
        total.backward()
        adamw.step()
        adamw.zero_grad()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        boss.send((time.perf_counter() - began, {term: loss.item() for term, loss in losses.items()}))
    boss.send(peak_bytes(device))


def words(dataset) -> Tokenizer:
    """As many as BERT's vocabulary has: those of the data, and made-up ones that nobody says."""
    return Tokenizer.train(chain(texts_of(dataset), (f"w{i}" for i in range(WORDS))), WORDS)
