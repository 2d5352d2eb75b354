"""The demo: distill a small student here, and compare it with the shipped models."""

import time
from pathlib import Path

import torch

from dlip import data as data_sets
from dlip.common.text import plural
from dlip.cost.latency import compare_latency
from dlip.experiments import run
from dlip.experiments.config import DataConfig, ExperimentConfig, HeldOutConfig
from dlip.experiments.grids import DISTILLED
from dlip.experiments.history import model_record
from dlip.reports.comparison import finding, table
from dlip.reports.report import report
from dlip.training.config import TrainConfig
from dlip.training.weights import weights
from dlip.vlm import VLM

COMPARED = ("scenes/teacher", "scenes/student-undistilled", "scenes/student")
LIVE = "live student"
ENCODER = "image=scenes/encoders/80x4/vit"
"""What the student is initialized with, as the shipped students were."""
EVALUATIONS, EVALUATION_IMAGES = 6, 100
"""Quick evaluations during training, and images of val in each."""


def experiment(steps: int, seed: int) -> ExperimentConfig:
    """The demo's distillation: the losses of the grids' distilled rows, in fewer steps. KD would take too long."""
    train = TrainConfig(
        steps=steps,
        batch_size=32,
        optimizer="muon",
        lr=3e-3,
        schedule="cosine",
        warmup=min(100, steps // 6),
        seed=seed,
        label_smoothing=0.0,
        weights=weights(DISTILLED),
        learn_teacher_projection=False,
        center_states=True,
        questions=3,
        cache=True,
        save_every=100,
        eval_every=max(1, steps // EVALUATIONS),
        eval_items=EVALUATION_IMAGES,
    )
    return ExperimentConfig(
        name=LIVE,
        size="scenes-student",
        teacher="scenes/teacher",
        role="distilled",
        init_from=(ENCODER,),
        data=DataConfig(split="train-small"),
        evaluation=HeldOutConfig(split="test"),
        train=train,
    )


def demo(folder: Path, steps: int = 1500, seed: int = 0, quiet: bool = False) -> list[dict]:
    """Distill a student of the shipped size for `steps` from the shipped teacher; writes `folder`/report.html.

    Meanwhile the student's scores are printed in percent of the teacher's.

    Returns the records compared: the shipped models' own, their latency measured here beside the new student's, and
    the new student's. Nothing is printed where `quiet`.
    """
    began = time.perf_counter()
    say = (lambda *_, **__: None) if quiet else print
    say(f"Distilling scenes/teacher into a small student: {plural(steps, 'step')} on generated images.")
    live = run.run(
        experiment(steps, seed),
        folder / "student",
        folder / "records.jsonl",
        command=f"dlip demo --steps {steps} --seed {seed}",
        progress=not quiet,
    )
    records = [*map(model_record, COMPARED), live]
    models = {
        record["name"]: VLM.load(name) for record, name in zip(records, (*COMPARED, folder / "student"), strict=True)
    }
    latency = compare_latency(models, "captioning")
    for record in records:
        share = {"share": 100 / latency["speedup"][record["name"]]} if record["role"] != "teacher" else {}
        record["efficiency"]["latency"] = latency["models"][record["name"]] | share
    test = data_sets.open("scenes", "test", limit=12)
    report(records, {item.image_id: item.image for item in (test[i] for i in range(len(test)))}, folder / "report.html")
    say("", table(records), "", *finding(records), sep="\n")
    minutes = (time.perf_counter() - began) / 60
    say(f"\nReport: {folder / 'report.html'} ({minutes:.1f} minutes on {plural(torch.get_num_threads(), 'thread')})")
    return records
