"""The paper's schedule as configuration: pre-training with distillation on the 4M set, then fine-tuning at 384 px.

A recipe is options of `dlip train` and `dlip distill`; explicit options override it. docs/training.md lists which
values are the paper's (arXiv 2308.12956, section 4.1) and which were chosen here.
"""

from dataclasses import dataclass

from dlip.training.weights import weights

PHOTOS = dict(precision="bf16", augment=True, flip=True, workers=8)
TUNING = dict(schedule="cosine", weight_decay=0.05, batch_size=256, warmup=0, **PHOTOS)
MOMENTUM = dict(momentum=0.995, queue=57344, alpha=0.4)
LARGE = "dlip-small:image_size=384"


@dataclass(frozen=True)
class Recipe:
    """Options of one stage."""

    size: str
    task_terms: str
    """Terms of the task."""
    teacher_terms: str
    """Terms that a teacher adds."""
    train: dict
    """Fields of TrainConfig."""

    def options(self, command: str) -> dict:
        """Values of the options of `train` or `distill`."""
        terms = f"{self.task_terms},{self.teacher_terms}" if command == "distill" else self.task_terms
        return {"size": self.size, "weights": weights(terms), **self.train}


RECIPES = {
    "pretrain": Recipe(
        "dlip-small", "itc,itm,lm", "hr=0.25,at",
        dict(epochs=20.0, batch_size=2048, lr=5e-4, warmup=3000, schedule="epoch", decay=0.85, weight_decay=0.02,
             label_smoothing=0.1, **MOMENTUM, **PHOTOS),
    ),
    "retrieval": Recipe(
        LARGE, "itc,itm", "hr.image=0.25,hr.text=0.25,hr.fusion=0.25,at.self,at.cross",
        dict(epochs=6.0, lr=1e-5, **MOMENTUM, **TUNING),
    ),
    "captioning": Recipe(
        LARGE, "lm", "hr.image=0.25,hr.decoder=0.25,at.decoder_self,at.decoder_cross",
        dict(epochs=5.0, lr=1e-5, label_smoothing=0.1, **TUNING),
    ),
    "vqa": Recipe(
        LARGE, "vqa", "hr.image=0.25,kd.vqa", dict(epochs=10.0, lr=2e-5, label_smoothing=0.1, questions=2, **TUNING)
    ),
}  # fmt: skip
