"""The live cell: a student that learns here and now, its losses drawn as they fall."""

import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlip.common.text import plural

if TYPE_CHECKING:
    from dlip.vlm import VLM

EVERY = 2.0
"""Seconds between two drawings."""


def short(many: int, few: int = 2) -> int:
    """`many`, or `few` where the environment has DLIP_QUICK, as the tests have."""
    return few if os.getenv("DLIP_QUICK") else many


@dataclass(frozen=True)
class Learnt:
    """A student made in a live cell."""

    model: "VLM"
    losses: dict[str, list[float]]
    """"step" and one list a term."""
    seconds: float


def recipe(size: str = "scenes-student", **weights: float):
    """The choice of a size and of weights (a group or a term each) as options of `dlip distill`, in Markdown."""
    from IPython.display import Markdown

    from dlip.cost.count import params
    from dlip.models import config
    from dlip.notebook.controls import weights_text
    from dlip.training import terms

    said, stored = weights_text(weights), sum(params(config.preset(size)).values())
    count = plural(len(terms.weights(said)), "loss term")
    return Markdown(f"{stored / 1e6:.2f}M parameters, {count}: `--size {size} --weights {said}`")


def anatomy(image: str, text: str):
    """A student of the grid `modules`, its thousands of parameters by module beside the teacher's, as a table."""
    import pandas as pd

    from dlip.cost.count import params
    from dlip.experiments.grids import IMAGE, TEXT, changed
    from dlip.models.config import preset

    sizes = {"teacher": "scenes-teacher", "student": changed(IMAGE[image], TEXT[text])}
    rows = pd.DataFrame({name: params(preset(size)) for name, size in sizes.items()})
    rows.loc["in all"] = rows.sum()
    rows = rows[rows.any(axis=1)]
    share = (100 * rows["student"] / rows["teacher"].replace(0, float("nan"))).map("{:.0f}%".format, na_action="ignore")
    return (rows / 1000).round(1).assign(share=share.fillna("–"))


def _distils(weights: str) -> bool:
    from dlip.training import terms

    return any("." in term and weight for term, weight in terms.weights(weights).items())


def learn(
    size: str,
    weights: str,
    steps: int,
    *,
    start: Sequence[str] = (),
    data: str | Path = "scenes",
    split: str = "train-small",
    teacher: str = "scenes/teacher",
    batch_size: int = 64,
    seed: int = 0,
) -> Learnt:
    """Trains a student in a folder of its own that is removed, and draws its losses while it learns.

    size, weights: as `dlip train` takes them; with a weight of hr.*, at.* or kd.* the teacher teaches it. steps: few
    where `short` says so. start: parts ("image", "text", or "" for all) that begin at the teacher's weights. Stopped by
    hand, the student is what it was then. The command that does the same is printed. Raises UserError as
    `dlip.training.loop.train` does.
    """
    import torch

    from dlip import data as data_sets
    from dlip.checkpoints.init_from import initialize
    from dlip.experiments.grids import FULL
    from dlip.experiments.run import new_student
    from dlip.models.fast.precision import native_bf16
    from dlip.training import terms
    from dlip.training.loop import train
    from dlip.training.run_folder import Run
    from dlip.vlm import VLM

    steps, began = short(steps), time.perf_counter()
    vlm = VLM.load(teacher)
    student = new_student(size, vlm, seed)
    spoken = {"itc", "lm", "vqa"}  # looked at even where they are not learnt; re-ranking would spoil what is
    student.med.abilities = terms.learnt(terms.weights(weights)) | spoken
    for part in start:
        initialize(student, f"{part}={teacher}" if part else teacher)
    settings = FULL.train.replace(
        weights=terms.weights(weights), steps=steps, seed=seed, log_every=max(1, steps // 60), batch_size=batch_size,
        warmup=min(FULL.train.warmup, steps // 4), precision="bf16" if native_bf16() else "no",
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="dlip-"))
    try:
        with watch(folder, steps):
            train(
                student, data_sets.open(data, split), settings, folder, vlm if _distils(weights) else None,
                progress=False,
            )  # fmt: skip
    except KeyboardInterrupt:
        print("Stopped; the student is what it was then.")
    losses = Run(folder).losses()
    shutil.rmtree(folder)
    student.med.eval()
    seconds = time.perf_counter() - began
    words = ["dlip", *(("distill", "--teacher") if _distils(weights) else ("train", "--tokenizer")), teacher]
    words += ["--size", size, "--weights", weights, "--data", str(data), "--split", split]
    words += [word for part in start for word in ("--start", f"{part}={teacher}" if part else teacher)]
    print(f"{steps} steps in {seconds:.0f} seconds, threads: {torch.get_num_threads()}; the same in a terminal:")
    print(shlex.join([*words, *settings.options(), "--out", "runs/mine"]))
    return Learnt(student, losses, seconds)


@contextmanager
def watch(folder: str | Path, steps: int | None = None) -> Iterator[None]:
    """Draws the losses of a run's folder while the block trains there, and once more when it ends."""
    from IPython.display import display

    from dlip.notebook.controls import mime_bundle
    from dlip.plots import term_curves
    from dlip.training.run_folder import Run

    run, stop = Run(folder), threading.Event()
    shown = display(mime_bundle(term_curves({}, steps)), raw=True, display_id=True)

    def draw() -> None:
        shown.update(mime_bundle(term_curves(run.losses(), steps)), raw=True)

    def keep_drawing() -> None:
        while not stop.wait(EVERY):
            draw()

    thread = threading.Thread(target=keep_drawing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        draw()
