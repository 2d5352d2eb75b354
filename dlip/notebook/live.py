"""The live cell: trains a student and draws its losses meanwhile."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
from IPython.display import Markdown

from dlip.common.text import plural
from dlip.notebook.controls import mime_bundle, weights_text
from dlip.plots import term_curves
from dlip.records import config_hash

if TYPE_CHECKING:
    from dlip.experiments.config import ExperimentConfig
    from dlip.vlm import VLM

REDRAW_S = 2.0


def short(many: int, few: int = 2) -> int:
    """`many`, or `few` where the environment has DLIP_QUICK, as the tests have."""
    return few if os.getenv("DLIP_QUICK") else many


@dataclass(frozen=True)
class LiveStudent:
    """A student trained in a live cell."""

    model: "VLM"
    role: str
    """"distilled" or "undistilled"."""
    losses: dict[str, list[float]]
    """"step" and one list a term."""
    seconds: float


def recipe(size: str = "scenes-student", **weights: float):
    """A size and weights of loss terms or groups as options of `dlip distill`, in Markdown."""
    from dlip.cost.count import params
    from dlip.models import config
    from dlip.training import weights as terms

    text, stored = weights_text(weights), sum(params(config.preset(size)).values())
    count = plural(len(terms.weights(text)), "loss term")
    return Markdown(f"{stored / 1e6:.2f}M parameters, {count}: `--size {size} --weights {text}`")


def anatomy(image: str, text: str):
    """Table of parameters by module, in thousands: the teacher's and those of a student of the grid `modules`."""
    from dlip.cost.count import params
    from dlip.experiments.grids import IMAGE, TEXT, student_size
    from dlip.models.config import preset

    sizes = {"teacher": "scenes-teacher", "student": student_size(IMAGE[image], TEXT[text])}
    rows = pd.DataFrame({name: params(preset(size)) for name, size in sizes.items()})
    rows.loc["in all"] = rows.sum()
    rows = rows[rows.any(axis=1)]
    share = (100 * rows["student"] / rows["teacher"].replace(0, float("nan"))).map("{:.0f}%".format, na_action="ignore")
    return (rows / 1000).round(1).assign(share=share.fillna("–"))


def live_experiment(
    size: str,
    weights: str,
    steps: int,
    *,
    init_from: Sequence[str] = (),
    data: str | Path = "scenes",
    split: str = "train-small",
    teacher: str = "scenes/teacher",
    **train,
) -> "ExperimentConfig":
    """The experiment of a live cell: the grids' training, with few steps and without checkpoints of its own.

    size, weights, init_from: as `dlip train` takes them; with a weight of hr.*, at.* or kd.* the student is distilled.
    train: other options of `TrainConfig` than the grids'.
    """
    from dlip.experiments.config import DataConfig, ExperimentConfig
    from dlip.experiments.grids import FULL
    from dlip.training import weights as terms

    loss_weights = terms.weights(weights)
    distilled = bool(terms.distills(loss_weights))
    return ExperimentConfig(
        size=size,
        teacher=teacher if distilled else None,
        tokenizer=None if distilled else teacher,
        role="distilled" if distilled else "undistilled",
        init_from=tuple(init_from),
        data=DataConfig(name=str(data), split=split),
        train=FULL.train.replace(**{
            "weights": loss_weights, "steps": steps, "log_every": max(1, steps // 60), "batch_size": 64,
            "warmup": min(FULL.train.warmup, steps // 4), "precision": "auto",
        } | train),
    )  # fmt: skip


def learn(size: str, weights: str, steps: int, *, report_to: Sequence[str] = (), **options) -> LiveStudent:
    """Train a student in a temporary folder, and draw its losses while it trains.

    The arguments are those of `live_experiment`; steps: few where `short` says so. report_to: trackers that get the
    losses too, of `dlip.experiments.trackers.TRACKERS`. Interrupted, the student is what it was then. Prints the
    command that does the same. Raises UserError as `dlip.training.loop.train` does.
    """
    import torch

    from dlip import data as data_sets
    from dlip.experiments.run import student_for
    from dlip.experiments.trackers import Reporter
    from dlip.training.loop import train
    from dlip.training.run_folder import Run
    from dlip.vlm import VLM

    steps = short(steps)
    experiment = live_experiment(size, weights, steps, **options)
    config = experiment.train
    tokenizer_model = VLM.load(experiment.tokenizer or experiment.teacher)
    dataset = data_sets.open(experiment.data.name, experiment.data.split)
    dataset.verify()
    student = student_for(size, tokenizer_model, config, dataset, experiment.init_from)
    student.med.abilities |= {"itc", "lm", "vqa"}  # also untrained; re-ranking by an untrained itm would hide itc
    with TemporaryDirectory(prefix="dlip-") as folder:
        began = time.perf_counter()
        try:
            with closing(Reporter(report_to, Run(folder), dataset)) as reporter, watch(folder, steps):
                train(
                    student, dataset, config, folder, tokenizer_model if experiment.teacher else None, progress=False,
                    about={"name": "live student"}, on_row=reporter,
                )  # fmt: skip
        except KeyboardInterrupt:
            print("Interrupted; the student is what it was then.")
        losses, seconds = Run(folder).losses(), time.perf_counter() - began
    student.med.eval()
    done = max(losses.get("step", ()), default=0)
    print(f"{plural(done, 'step')} in {seconds:.0f} s, threads: {torch.get_num_threads()}; the same in a terminal:")
    print(experiment.command(f"runs/live-{config_hash(experiment.to_dict())[:8]}"))
    return LiveStudent(student, experiment.role, losses, seconds)


@contextmanager
def watch(folder: str | Path, steps: int | None = None) -> Iterator[None]:
    """Draw the losses in a run folder while the block trains there, and once more when it ends."""
    from IPython.display import display

    from dlip.training.run_folder import Run

    run, stop = Run(folder), threading.Event()
    shown = display(mime_bundle(term_curves({}, steps)), raw=True, display_id=True)

    def draw() -> None:
        shown.update(mime_bundle(term_curves(run.losses(), steps)), raw=True)

    def keep_drawing() -> None:
        while not stop.wait(REDRAW_S):
            draw()

    thread = threading.Thread(target=keep_drawing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        draw()
