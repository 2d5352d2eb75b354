"""The demo: distill a small student here, and compare it with the shipped models."""

import time
from pathlib import Path

import torch

from dlip import data as data_sets
from dlip.checkpoints.load import BUILT_IN
from dlip.common.files import read_json
from dlip.common.text import plural
from dlip.cost.latency import compare_latency
from dlip.experiments import run
from dlip.experiments.config import DataConfig, ExperimentConfig, HeldOutConfig
from dlip.records.migration import upgrade
from dlip.reports.comparison import finding, table
from dlip.reports.report import report
from dlip.training.config import TrainConfig
from dlip.training.terms import AT, HR, KD, VLP
from dlip.vlm import VLM

SHIPPED = ("scenes/teacher", "scenes/student-undistilled", "scenes/student")
LIVE = "student distilled here"
IMAGES = 1000
"""Training images, as many as the shipped students had."""


def experiment(steps: int, seed: int) -> ExperimentConfig:
    """The demo's distillation; expensive terms that need trained representations join last."""
    weights = {**VLP, **dict.fromkeys(HR, 5.0), **AT, **KD}
    joins = {term: steps // 6 for term in weights if term != "hr.image"}
    joins |= dict.fromkeys(("itm", "kd.itm", "kd.vqa"), steps // 3)
    train = TrainConfig(
        steps=steps, batch_size=64, lr=3e-3, schedule="cosine", warmup=min(100, steps // 6), seed=seed,
        label_smoothing=0.0, weights=weights, joins=joins, learn_teacher_projection=False, center_states=True,
        questions=3, save_every=100,
    )  # fmt: skip
    return ExperimentConfig(
        name=LIVE, size="scenes-student", teacher="scenes/teacher", role="distilled",
        data=DataConfig(split="train-small", limit=IMAGES), evaluation=HeldOutConfig(split="test"), train=train,
    )  # fmt: skip


def demo(folder: Path, steps: int = 600, seed: int = 0, quiet: bool = False) -> list[dict]:
    """Distill a student of the shipped size for `steps` from the shipped teacher; writes `folder`/report.html.

    Returns the records compared: the shipped models' own, their latency measured here beside the new student's, and
    the new student's. Nothing is printed where `quiet`.
    """
    began = time.perf_counter()
    say = (lambda *_, **__: None) if quiet else print
    say(f"Distilling scenes/teacher into a small student: {plural(steps, 'step')}, {IMAGES:,} generated images.")
    live = run.run(
        experiment(steps, seed), folder / "student", folder / "records.jsonl",
        command=f"dlip demo --steps {steps} --seed {seed}", progress=not quiet,
    )  # fmt: skip
    records = [*(upgrade(read_json(BUILT_IN / name / "record.json")) for name in SHIPPED), live]
    models = {
        record["name"]: VLM.load(name) for record, name in zip(records, (*SHIPPED, folder / "student"), strict=True)
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
