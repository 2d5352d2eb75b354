"""Copies of a run's log for accelerate's trackers: trackio, TensorBoard, Weights & Biases. The log itself stays."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from dlip.common.errors import UserError
from dlip.common.text import one_line
from dlip.evaluation.disagreement import items_of
from dlip.training.run_folder import Run

TRACKERS = ("trackio", "tensorboard", "wandb")
PROJECT = "dlip"


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError for an unknown tracker, or one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"there is no tracker {name!r}; choose one of {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise UserError(f"--report-to {name} needs the package {name}; install it with pip")


class Reporter:
    """Send the rows of a run's log to trackers, each started with the first row.

    A tracker that fails is skipped from then on, with a warning; the run continues. Raises UserError as
    `check_installed`.
    """

    def __init__(self, names: Sequence[str], run: Run, dataset):
        """dataset: has the images of the sample captions of quick evaluations."""
        check_installed(names)
        self.names, self.run, self.dataset = names, run, dataset
        self.trackers: dict[str, GeneralTracker] | None = None

    def __call__(self, row: dict) -> None:
        if self.trackers is None:
            self.trackers = {}
            for name in self.names:
                self._guarded(name, self._start, name)
        for name in list(self.trackers):
            self._guarded(name, self._send, name, row)

    def close(self) -> None:
        for name in list(self.trackers or {}):
            self._guarded(name, self.trackers[name].finish)

    def _guarded(self, name: str, function: Callable, *arguments) -> None:
        try:
            with redirect_stdout(sys.stderr):  # standard output is for --json
                function(*arguments)
        except Exception as error:  # the trackers raise many types
            self.trackers.pop(name, None)
            message = f"{name} failed and receives no more rows of this run, whose log is complete: {error}"
            warnings.warn(one_line(message), stacklevel=4)

    def _start(self, name: str) -> None:
        config = self.run.config()
        began = datetime.fromtimestamp((self.run.folder / "run.json").stat().st_mtime)  # written once
        title = f"{config.get('name') or self.run.folder.name} {began:%Y-%m-%d %H.%M.%S}"
        if name == "tensorboard":
            tracker = TensorBoardTracker(name, self.run.folder)
        elif name == "trackio":
            tracker = TrackioTracker(PROJECT, name=title, resume="allow")
        else:
            tracker = WandBTracker(PROJECT, name=title, id=re.sub(r"[^\w.-]+", "-", title), resume="allow")
        tracker.start()
        tracker.store_init_configuration(dict(_flat(config, ".", (int, float, str))))
        self.trackers[name] = tracker

    def _send(self, name: str, row: dict) -> None:
        step, tracker = row["step"], self.trackers[name]
        figures = {key: value for key, value in row.items() if key != "step"}
        tracker.log(dict(_flat(figures, "/", (int, float))), step=step)
        samples = row.get("eval", {}).get("samples", ())
        items = items_of(self.dataset, [sample["image_id"] for sample in samples])
        for i, sample in enumerate(samples):
            label, image = f"caption/{i}", np.asarray(items[sample["image_id"]].image)
            if name == "tensorboard":
                tracker.log_images({label: image[None]}, step=step, dataformats="NHWC")
                tracker.log({label: sample["caption"]}, step=step)
            else:
                tracker.log({label: import_module(name).Image(image, caption=sample["caption"])}, step=step)


def _flat(values: dict, joint: str, types: tuple[type, ...], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested dictionaries that have one of these types, each with the path to it."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, joint, types, f"{prefix}{key}{joint}")
        elif isinstance(value, types):
            yield f"{prefix}{key}", value
