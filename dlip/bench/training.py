"""A step of the playground's distillation, the shipped student's size under its teacher: fp32 and bf16 by turns."""

from functools import partial

import torch

from dlip.bench import by_turns, row
from dlip.config import TrainConfig
from dlip.data.collate import Collate
from dlip.data.scenes import Scenes
from dlip.descent import optimiser
from dlip.distillation import Teacher
from dlip.experiment import new_student
from dlip.learner import Learner
from dlip.terms import AT, HR, KD, VLP
from dlip.vlm import VLM

BATCH, QUESTIONS = 64, 3


def run(rounds: int = 10) -> tuple[dict, list[dict]]:
    """All terms, forward, backward, the teacher's part and the optimiser's; the pictures are at hand."""
    teacher, dataset = VLM.load("scenes/teacher"), Scenes("train-small", size=BATCH)
    weights = {**VLP, **HR, **AT, **KD}
    config = TrainConfig(steps=1, batch_size=BATCH, questions=QUESTIONS, weights=weights)
    guarded = Teacher(teacher.med)
    batch = Collate(teacher.tokenizer, 48, True, questions=QUESTIONS)([dataset[i] for i in range(BATCH)])
    learners = {}
    for name in ("fp32", "bf16"):
        learner = Learner(new_student("scenes-student", teacher, 0), teacher, config).train()
        learners[name] = learner, optimiser(learner, config)

    def step(name: str) -> None:
        learner, adamw = learners[name]
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            losses = learner(batch, guarded, 0, 0.0)
            total = sum(weights[term] * loss for term, loss in losses.items())
        total.backward()
        adamw.step()
        adamw.zero_grad()

    times = by_turns({name: partial(step, name) for name in learners}, rounds)
    rows = [row(name, some, times["fp32"], "s") for name, some in times.items()]
    settings = {"student": "scenes-student", "batch": BATCH, "questions": QUESTIONS, "terms": "vlp,hr,at,kd"}
    return settings | {"rounds": rounds, "threads": torch.get_num_threads()}, rows
