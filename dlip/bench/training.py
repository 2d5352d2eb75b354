"""A step of the playground's distillation, the shipped student's size under its teacher: fp32 and bf16 by turns."""

from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from dlip.bench import by_turns, row
from dlip.data.collate import Collate
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_student
from dlip.training.config import TrainConfig
from dlip.training.distillation import Teacher
from dlip.training.learner import Learner
from dlip.training.optimizer import make_optimizer
from dlip.training.terms import AT, HR, KD, VLP
from dlip.vlm import VLM

BATCH, QUESTIONS = 64, 3
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "copies and casts": ("aten::copy_",),
}
"""Kinds of work -> the kernels that do it."""


def run(rounds: int = 10) -> tuple[dict, list[dict]]:
    """All terms, forward, backward, the teacher's part and the optimizer's; the pictures are at hand.

    known: with the teacher's outputs at hand too, as a warm cache has them. Of it there is a profile: the time and the
    calls of `KINDS` and of all others, and the share of each in %.
    """
    teacher, dataset = VLM.load("scenes/teacher"), Scenes("train-small", size=BATCH)
    weights = {**VLP, **HR, **AT, **KD}
    config = TrainConfig(steps=1, batch_size=BATCH, questions=QUESTIONS, weights=weights)
    guarded = Teacher(teacher.med)
    batch = Collate(teacher.tokenizer, 48, True, questions=QUESTIONS)([dataset[i] for i in range(BATCH)])
    steps = {}
    for name in ("fp32", "bf16", "bf16, known"):
        learner = Learner(new_student("scenes-student", teacher, 0), teacher, config).train()
        asked = guarded if name != "bf16, known" else once(guarded)
        steps[name] = partial(step, learner, make_optimizer(learner, config), asked, batch, name != "fp32")
    times = by_turns(steps, rounds)
    rows = [row(name, some, times["fp32"], "s") for name, some in times.items()]
    rows += profiled(name, steps[name], rounds)
    settings = {"student": "scenes-student", "batch": BATCH, "questions": QUESTIONS, "terms": "vlp,hr,at,kd"}
    return settings | {"rounds": rounds, "threads": torch.get_num_threads()}, rows


def once(teacher: Teacher):
    """The teacher, asked once: what it said then is what it says."""
    said = []

    def known(*asked):
        if not said:
            said.append(teacher(*asked))
        return said[0]

    return known


def step(learner: Learner, adamw, teacher, batch, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = learner(batch, teacher, 0, 0.0)
        total = sum(learner.config.weights[term] * loss for term, loss in losses.items())
    total.backward()
    adamw.step()
    adamw.zero_grad()


def profiled(name: str, step, rounds: int) -> list[dict]:
    """Rows of a step's kinds of work: seconds and calls a step, share of all in %, and of products G a second."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
        for _ in range(rounds):
            step()
    events = seen.key_averages()
    known = [kernel for kernels in KINDS.values() for kernel in kernels]
    kinds = {kind: [event for event in events if event.key in kernels] for kind, kernels in KINDS.items()}
    kinds["all others"] = [event for event in events if event.key not in known]
    whole, rows = sum(event.self_cpu_time_total for event in events), []
    for kind, some in kinds.items():
        spent = sum(event.self_cpu_time_total for event in some)  # us
        about = {"share": round(100 * spent / whole), "calls": sum(event.count for event in some) // rounds}
        if kind == "products":
            about["gflops"] = round(sum(event.flops for event in some) / spent / 1e3, 1)
        rows.append({"name": f"{name}: {kind}", "s": round(spent / rounds / 1e6, 4), **about})
    return rows
