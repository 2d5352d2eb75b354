"""A distillation step of the paper's size: DLIP-Small from a random BLIP-Base, at 224 px, with the paper's terms.

Each variant runs in a process of its own, so that its memory can be measured; the processes alternate step by step.
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
from dlip.bench import row, training
from dlip.common import machine
from dlip.common.errors import UserError
from dlip.cost.memory import peak_bytes
from dlip.data.collate import Collate
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.experiments.run import VOCABULARY_IMAGES, new_model, new_student
from dlip.models.config import ModelConfig
from dlip.training.caches.teacher import TeacherCache
from dlip.training.config import TrainConfig
from dlip.training.dry_run import budget
from dlip.training.layer_modes import can_compile, set_layer_modes
from dlip.training.learner import Learner
from dlip.training.optimizer import make_optimizer
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM

VOCABULARY = 30_524
"""Size of BERT's vocabulary, with BLIP's two tokens."""
TOKENS = 30


@dataclass(frozen=True)
class Variant:
    precision: str = "fp32"
    padded: bool = False
    """Texts are padded to `TOKENS` tokens."""
    cached: bool = False
    """The teacher's outputs are read from a warm cache on disk."""
    compiled: bool = False


VARIANTS = {
    "plain": Variant(padded=True),
    "fp32": Variant(),
    "bf16": Variant("bf16"),
    "bf16, cached teacher": Variant("bf16", cached=True),
}
COMPILED = {"bf16, compiled": Variant("bf16", compiled=True)}
"""Added if layers can be compiled."""


def run(data: str = "scenes", rounds: int = 3, batch: int = 16) -> tuple[dict, list[dict]]:
    """A step of `batch` images in each variant: forward, backward, teacher and optimizer.

    plain: fp32, texts of 30 tokens. peak_gb: peak memory of the process, or of a GPU's allocator. dry_run_gb,
    dry_run_s: estimates of `dlip.training.dry_run`. tflops: achieved, by the dry run's FLOPs of student and teacher;
    none with a cached teacher. Raises UserError if there are no such data, or if the losses of the first step differ:
    of fp32 by more than 0.1% from plain, of the others by more than 10%.
    """
    split = "train" if data != "scenes" else "train-small"
    data_sets.open(data, split, batch)
    variants = VARIANTS | (COMPILED if can_compile() else {})
    context, workers, costs = get_context("spawn"), {}, {}
    for name, variant in variants.items():
        connection, worker_end = context.Pipe()
        job = (worker_end, data, split, batch, variant, torch.get_num_threads())
        process = context.Process(target=_serve, args=job, daemon=True)
        process.start()
        worker_end.close()
        workers[name] = connection, process
        costs[name] = _receive(name, connection)  # waits, because the dry run times a step
    times, losses = {name: [] for name in workers}, {}
    for turn in range(1 + rounds):
        for name, (connection, _) in workers.items():
            connection.send("step")
            seconds, step_losses = _receive(name, connection)
            if turn:
                times[name].append(seconds)
            else:
                losses[name] = step_losses
                check_equal(losses)
    rows, first = [], next(iter(times.values()))
    for name, (connection, process) in workers.items():
        connection.send(None)
        peak, cost = _receive(name, connection), costs[name]
        process.join()
        tflops = None if variants[name].cached else round(cost["flops"] / median(times[name]) / 1e12, 3)
        rows.append(row(
            name, times[name], first, "s", images_per_s=round(batch / median(times[name]), 2), tflops=tflops,
            peak_gb=peak and round(peak / 1e9, 2), dry_run_gb=round(sum(cost["memory_gb"].values()), 2),
            dry_run_s=round(3600 * cost["hours"]["this machine"], 2),
        ))  # fmt: skip
    settings = {
        "teacher": "blip-base, random", "student": "dlip-small", "image_size": 224, "batch": batch,
        "terms": "vlp,hr,at", "data": data.rstrip("/").split("/")[-1], "rounds": rounds,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return settings, rows


def check_equal(losses: dict[str, dict[str, float]]) -> None:
    """Raise UserError if a variant's losses differ from those of the first by more than `run` allows."""
    (_, first), *others = losses.items()
    for name, variant_losses in others:
        for term, loss in variant_losses.items():
            if not abs(loss - first[term]) <= (1e-3 if name == "fp32" else 0.1) * max(1, abs(first[term])):
                raise UserError(
                    f"no record was made: {term} is {loss:.4g} in a step {name}, {first[term]:.4g} in a plain one"
                )


def _receive(name: str, connection: Connection):
    try:
        return connection.recv()
    except EOFError:
        raise UserError(f"the process of {name} ended, maybe for lack of memory; free some, or use a GPU") from None


def _serve(connection: Connection, data: str, split: str, batch: int, variant: Variant, threads: int) -> None:
    """Send the dry run's estimate, then seconds and losses of a step on each request, and at the end peak memory."""
    torch.set_num_threads(threads)
    dataset = data_sets.open(data, split, 4 * batch)
    teacher = new_model("blip-base", bert_sized_tokenizer(dataset), 0)
    student = new_student("dlip-small", teacher, 0)
    terms = weights("vlp,hr,at") | ({} if dataset[0].questions else {"vqa": 0.0})
    config = TrainConfig(steps=1, batch_size=batch, precision=variant.precision, weights=terms)
    connection.send(budget(student, dataset, config, teacher))
    device = machine.device()
    learner = Learner(student, teacher, config).to(device).train()
    outputs, adamw = Teacher(teacher.med.to(device)), make_optimizer(learner, config)
    for model in (learner, outputs):
        set_layer_modes(model, compiled=variant.compiled)
    collate = Collate(student.tokenizer, 224, student.med.config.max_text)
    ready = replace(collate([dataset[i] for i in range(batch)]), index=torch.arange(batch)).to(device)
    if variant.padded:
        padding = (0, max(0, TOKENS - ready.ids.shape[1]))
        ready = replace(
            ready, ids=F.pad(ready.ids, padding, value=student.med.config.pad_id), mask=F.pad(ready.mask, padding)
        )
    if variant.cached:
        folder = tempfile.TemporaryDirectory()
        outputs = TeacherCache(folder.name, outputs, data_sets.open(data, split, batch), collate)
    torch.manual_seed(0)  # for the sampled negatives
    while connection.recv():
        start = time.perf_counter()
        losses = training.step(learner, adamw, outputs, ready, variant.precision == "bf16")
        machine.synchronize(device)
        connection.send((time.perf_counter() - start, {term: loss.item() for term, loss in losses.items()}))
    connection.send(peak_bytes(device))


def random_model(size: str | ModelConfig) -> VLM:
    """An untrained model with a vocabulary of BERT's size."""
    return new_model(size, bert_sized_tokenizer(Scenes("train-small", size=16)), 0)


def bert_sized_tokenizer(dataset) -> Tokenizer:
    """A tokenizer of the data's words, filled up with unused ones to the size of BERT's vocabulary."""
    texts = dataset.texts(VOCABULARY_IMAGES)
    return Tokenizer.train(chain(texts, (f"w{i}" for i in range(VOCABULARY))), VOCABULARY)
