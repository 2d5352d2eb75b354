"""What several tests of training share."""

from dataclasses import replace

import torch
from accelerate import Accelerator

from dlip.data.batch import Question
from dlip.data.dataset import FirstN
from dlip.data.scenes.dataset import Scenes
from dlip.training.config import TrainConfig

TRAIN_SCENES = Scenes("train-small", size=24)
SHORT = TrainConfig(steps=6, batch_size=8, lr=1e-3, warmup=2, log_every=1, save_every=2)


class InterruptedDataset(FirstN):
    """Scenes that raise KeyboardInterrupt at the `last` read."""

    def __init__(self, dataset: Scenes, last: int):
        super().__init__(dataset, len(dataset))
        self.left = last

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()

    def __getitem__(self, i: int):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().__getitem__(i)


class Sparse(Scenes):
    """Every fifth image has a question and every third a caption, of several lengths."""

    def __getitem__(self, i: int):
        item = super().__getitem__(i)
        questions = [Question("what?", ["red" if i % 2 else "a dark red"])] if i % 5 == 0 else []
        captions = ["a red star above a circle" if i % 2 else "a star"] if i % 3 == 0 else []
        return replace(item, questions=questions, captions=captions)


def untimed_rows(run) -> list[dict]:
    """Rows of a run's log without the fields that depend on the clock."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in run.rows()]


def force_fp16_scaler(monkeypatch, scale: float, backoff: float) -> None:
    """Give the training loop's Accelerator a gradient scaler, which it lacks on a CPU."""

    class ScalingAccelerator(Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu", scale, backoff_factor=backoff, growth_interval=2)

    monkeypatch.setattr("dlip.training.loop.Accelerator", ScalingAccelerator)
