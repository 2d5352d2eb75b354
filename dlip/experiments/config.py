"""What an experiment is: the value behind `dlip train` and `distill`, a grid's row, a run folder and a record."""

import shlex
from dataclasses import dataclass
from typing import Literal

from dlip.common.errors import UserError
from dlip.common.fields import Config, check, option
from dlip.common.options import comma_separated, to_argv
from dlip.models.tasks import TASKS, Reranker
from dlip.training.config import TrainConfig
from dlip.training.weights import weights


@dataclass(frozen=True)
class DataConfig:
    """A split of a data set."""

    name: str = option("scenes", flag="data", metavar="DATA")
    """Data set: "scenes", a folder, shards (a folder or address of *.tar), hub:NAME, or several joined by +."""
    split: str | None = None
    """Split to use; by default train (scenes: train-small) for training, and test, else val, for evaluation."""
    limit: int | None = option(None, least=1)
    """Use the first N images only."""
    on_error: Literal["fatal", "skip"] = "fatal"
    """Stop at faulty images and texts, or skip them."""

    def __post_init__(self):
        check(self, "data.")


@dataclass(frozen=True)
class MeasureConfig:
    """How a model is measured."""

    candidates: int | None = option(None, least=0)
    """Candidates per image or caption that ITM re-ranks in retrieval; by default 16 of scenes, else 128."""
    latency_repeats: int = option(20, least=0)
    """Repetitions of the latency measurement; 0 for none."""
    generate_limit: int | None = option(None, least=1)
    """Generate captions for the first N images that have captions, and answers likewise; retrieval is among all."""

    def __post_init__(self):
        check(self, "evaluation.")


@dataclass(frozen=True)
class HeldOutConfig(MeasureConfig):
    """What a trained model is measured on, and how."""

    data: str | None = option(None, flag="test_data", metavar="DATA")
    """Data set to evaluate on at the end; by default that of --data."""
    split: str | None = option(None, flag="test_split")
    """Split to evaluate on; by default test, or val where there is no test."""
    limit: int | None = option(None, flag="test_limit", least=1)
    """Evaluate on the first N images only."""


@dataclass(frozen=True)
class ExperimentConfig(Config):
    """One training with its evaluation: names of models and data, and how they are trained and measured."""

    size: str = option(metavar="SIZE")
    """Size of the model: blip-base, dlip-mid, scenes-student, ... (`dlip models` lists them); with changes,
    scenes-student:text_layers=3."""
    teacher: str | None = option(None, metavar="MODEL", command="distill", required=True)
    """Teacher: the name of a BLIP, CLIP or SigLIP, or several joined by +."""
    tokenizer: str | None = option(None, metavar="MODEL")
    """Model whose tokenizer to use; by default the teacher's if that is a BLIP, else one trained on the training
    texts."""
    role: Literal["teacher", "undistilled", "distilled"] = option(
        "undistilled", command="train", choices=("teacher", "undistilled")
    )
    """Role in records and tables: teacher or undistilled student."""
    init_from: tuple[str, ...] = option((), metavar="[PART=]MODEL")
    """Initialize from a model, ViT, DeiT or BERT: whole, or its part image, text, language or backbone, as in
    image=runs/teacher; may be repeated."""
    name: str | None = None
    """Name in the records; by default that of the run folder."""
    data: DataConfig = DataConfig()
    """Training data."""
    evaluation: HeldOutConfig = HeldOutConfig()
    """Evaluation after training."""
    train: TrainConfig = option(factory=TrainConfig)
    """Training."""

    def __post_init__(self):
        check(self, "")
        if (self.role == "distilled") != (self.teacher is not None):
            raise UserError(
                f"role is {self.role!r} with teacher {self.teacher}; a distilled model has a teacher, others have none"
            )

    def command(self, out: str) -> str:
        """The command line that runs this experiment, for information: nothing reads it back."""
        name = "distill" if self.teacher else "train"
        argv = to_argv(self, name, command_defaults(name)) + ["--cache"] * self.train.cache
        return shlex.join(["dlip", name, *argv, "--out", out])

    @classmethod
    def from_dict(cls, values: dict) -> "ExperimentConfig":
        """An experiment from a record's "config" or a run folder's run.json; what else stands there is ignored.

        Raises UserError where a value is missing or wrong.
        """
        return super().from_dict({name: value for name, value in values.items() if name not in ("model", "inputs")})


def command_defaults(command: str) -> dict:
    """Defaults of a command's options where they are not those of ExperimentConfig."""
    return {"weights": weights("vlp,hr,at"), "role": "distilled"} if command == "distill" else {}


@dataclass(frozen=True)
class EvaluationConfig(Config):
    """One evaluation of a model that exists."""

    model: str = option(metavar="MODEL")
    """Model to evaluate: a built-in name, a run folder, or a published BLIP, CLIP or SigLIP."""
    tasks: tuple[str, ...] = option(tuple(TASKS), parse=comma_separated, show=",".join, metavar="TASKS")
    """Tasks to evaluate, comma-separated."""
    beams: int = option(3, least=1, most=100)
    """Beams of captions and answers."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Precision in which the model runs: fp32 and bf16 in torch, int8 as `dlip export --to onnx --int8`."""
    data: DataConfig = DataConfig()
    """Data."""
    measure: MeasureConfig = MeasureConfig()
    """Measurement."""
    bounds: bool = False
    """Also score a blind guesser (floor) and the ground truth (ceiling); scenes only."""
    rerank: Reranker = "itm"
    """What re-ranks retrieval's candidates: "itm", or the caption "decoder", which a model without ITM may have."""

    def __post_init__(self):
        check(self, "")
        if self.rerank == "decoder" and self.precision == "int8":
            raise UserError("a model in int8 cannot rank by its decoder; drop --rerank, or choose another --precision")

    def differences(self, precision: str) -> list[str]:
        """What distinguishes it, and the model's precision, from the evaluation after training, for a record's name."""
        how = self.measure
        words = [precision] if precision != EvaluationConfig.precision else []
        words += [f"{self.beams} beams"] if self.beams != EvaluationConfig.beams else []
        words += [" and ".join(self.tasks)] if {*self.tasks} != {*TASKS} else []
        words += [f"texts of {how.generate_limit} images"] if how.generate_limit is not None else []
        if how.candidates is not None:
            words.append(f"{how.candidates} candidates" if how.candidates else "by ITC alone")
        words += ["re-ranked by the decoder"] if self.rerank == "decoder" else []
        return words

    def command(self) -> str:
        """The command line of this evaluation, for information."""
        return shlex.join(["dlip", "evaluate", *to_argv(self, "evaluate", {})])
