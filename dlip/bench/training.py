"""A distillation step of the scenes student in fp32 and bf16, and its profile."""

from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from dlip.bench import alternate, row
from dlip.common.torch_private import ONEDNN_LINEAR
from dlip.data.collate import Collate
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_student
from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.optimizer import make_optimizer
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM

BATCH, QUESTIONS = 64, 3
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", ONEDNN_LINEAR),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "copies and casts": ("aten::copy_",),
}
"""Kind of work -> its kernels."""


def run(rounds: int = 10) -> tuple[dict, list[dict]]:
    """All terms: forward, backward, teacher and optimizer, with the images in memory.

    known: the teacher's outputs are in memory too, as with a warm cache; this variant is also profiled: seconds, calls
    and share in % of each of `KINDS`.
    """
    teacher, dataset = VLM.load("scenes/teacher"), Scenes("train-small", size=BATCH)
    terms = weights("vlp,hr,at,kd")
    config = TrainConfig(steps=1, batch_size=BATCH, questions=QUESTIONS, weights=terms)
    teacher_outputs = Teacher(teacher.med)
    collate = Collate(teacher.tokenizer, teacher.image_size, teacher.med.config.max_text, questions=QUESTIONS)
    batch = collate([dataset[i] for i in range(BATCH)])
    steps = {}
    for name in ("fp32", "bf16", "bf16, known"):
        learner = Learner(new_student("scenes-student", teacher, 0), teacher, config).train()
        outputs = teacher_outputs if name != "bf16, known" else memoized(teacher_outputs)
        steps[name] = partial(step, learner, make_optimizer(learner, config), outputs, batch, name != "fp32")
    times = alternate(steps, rounds)
    rows = [row(name, seconds, times["fp32"], "s") for name, seconds in times.items()]
    rows += profiled(name, steps[name], rounds)
    settings = {"student": "scenes-student", "batch": BATCH, "questions": QUESTIONS, "terms": "vlp,hr,at,kd"}
    return settings | {"rounds": rounds, "threads": torch.get_num_threads()}, rows


def memoized(teacher: Teacher):
    """The teacher, which computes its outputs once."""
    outputs = []

    def first_outputs(*inputs):
        if not outputs:
            outputs.append(teacher(*inputs))
        return outputs[0]

    return first_outputs


def step(learner: Learner, adamw, teacher, batch, bf16: bool) -> dict[str, torch.Tensor]:
    """Forward, backward and optimizer; returns the losses."""
    with torch.autocast(batch.image_id.device.type, torch.bfloat16, enabled=bf16):
        losses = learner(batch, teacher, 0, 0.0)
        total = sum(learner.config.weights[term] * loss for term, loss in losses.items())
    total.backward()
    adamw.step()
    adamw.zero_grad()
    return losses


def profiled(name: str, step, rounds: int) -> list[dict]:
    """Rows of the kinds of work of a step: seconds and calls per step, share in %, and GFLOPS of products, which the
    profiler does not count for oneDNN's."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        for _ in range(rounds):
            step()
    events = profiler.key_averages()
    known = [kernel for kernels in KINDS.values() for kernel in kernels]
    kinds = {kind: [event for event in events if event.key in kernels] for kind, kernels in KINDS.items()}
    kinds["all others"] = [event for event in events if event.key not in known]
    total, rows = sum(event.self_cpu_time_total for event in events), []
    for kind, group in ((kind, group) for kind, group in kinds.items() if group):
        spent = sum(event.self_cpu_time_total for event in group)  # us
        about = {"share": round(100 * spent / total), "calls": sum(event.count for event in group) // rounds}
        if kind == "products" and all(event.key != ONEDNN_LINEAR for event in group):
            about["gflops"] = round(sum(event.flops for event in group) / spent / 1e3, 1)
        rows.append({"name": f"{name}: {kind}", "s": round(spent / rounds / 1e6, 4), **about})
    return rows
