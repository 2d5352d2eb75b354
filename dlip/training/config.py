"""How a model is trained: a validated dataclass, the source of every training option."""

import math
from dataclasses import asdict, dataclass, field, replace

from dlip.common.errors import UserError
from dlip.common.fields import MOST_NUMBER, check_kinds
from dlip.training.terms import HR, TERMS, VLP

CACHE = "runs/teacher-cache"
"""Where a teacher's outputs are kept if nothing else is said."""


CACHE_GB = 20.0
"""How many GB they may take."""


ABOVE_0 = math.ulp(0.0)


NATURAL = (0, math.inf, "0 or a positive whole number")


RANGES = {
    "lr": (ABOVE_0, 1, "a number above 0, at most 1"),
    "decay": (ABOVE_0, 1, "a number above 0, at most 1"),
    "warmup": NATURAL,
    "weight_decay": (0, 1e6, "0 or a positive number"),
    "clip": (ABOVE_0, MOST_NUMBER, "a positive number"),
    "seed": (0, 2**32 - 1, "a whole number from 0 to 4294967295"),
    "label_smoothing": (0, 1, "a number from 0 to 1"),
    "momentum": (0, 1, "a number from 0 to 1"),
    "queue": (0, 10**8, "0 or a positive whole number, at most 100,000,000"),
    "alpha": (0, 1, "a number from 0 to 1"),
    "workers": (0, 1000, "a whole number from 0 to 1,000"),
    "eval_every": NATURAL,
    "eval_items": (1, math.inf, "a positive whole number"),
}
"""Field of TrainConfig -> the least and the most that it may be, and what to give instead."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's where it states them, but for ITC's momentum, which is off,
    and the answers, which are a term of the task; `dlip.training.recipes` has its whole road."""

    steps: int = 1000
    batch_size: int = 96
    """Pictures a step, over all processes."""
    accumulate: int = 1
    """Micro-batches that a step's batch is cut into; negatives come from within a micro-batch."""
    lr: float = 5e-4
    schedule: str = "epoch"
    """"epoch" multiplies the rate by `decay` every epoch (the paper); "cosine" falls to zero at the last step."""
    decay: float = 0.85
    warmup: int = 100
    """Steps over which the rate rises from zero."""
    weight_decay: float = 0.02
    clip: float = 1.0
    """Largest norm of the gradient."""
    nonfinite: str = "stop"
    """Where a loss or gradient is no finite number: "stop" the run, or "skip" the step."""
    precision: str = "no"
    """"no" (fp32), "bf16" or "fp16"."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for backward and compute the rest again: less memory, about a third more time."""
    compile: bool = False
    """Compile the layers of teacher and student with torch.compile: the first steps take minutes, the rest less."""
    seed: int = 0
    weights: dict[str, float] = field(default_factory=lambda: dict(VLP))
    """Term -> weight; a term of weight 0 or not named is not computed."""
    joins: dict[str, int] = field(default_factory=dict)
    """Term -> steps that are done without it; 0 where not named. Until then it is not computed."""
    layers: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Source -> pairs (teacher layer, student layer) that hr.* and at.* compare; the last layers where not named."""
    learn_teacher_projection: bool = True
    """Whether hr.* learns the teacher's projection as the paper does, or leaves the teacher's space as it is."""
    center_states: bool = False
    """Whether hr.* compares how states differ from their mean over the batch, beyond the paper."""
    label_smoothing: float = 0.1
    momentum: float = 0.0
    """Decay of ITC's momentum encoders (BLIP: 0.995); 0 does without them."""
    queue: int = 0
    """Vectors in ITC's queue (BLIP: 57,600); needs momentum."""
    alpha: float = 0.4
    """Weight of ITC's soft labels under momentum, reached linearly over the first epoch."""
    augment: bool = False
    """Vary the training pictures: photos are cropped, drawn pictures shifted."""
    flip: bool = False
    """With augment: mirror photos too, save where the words name left or right."""
    questions: int = 1
    """Questions a picture and step."""
    cache: bool = False
    """Read what the teacher says of pictures and captions from the disk, in float16
    (dlip/training/teacher_cache.py)."""
    shard_teacher: bool = False
    """Each of several processes keeps a part of the teacher, and gathers the rest for its forward pass alone (FSDP)."""
    workers: int = 0
    """Processes that read pictures ahead."""
    log_every: int = 20
    save_every: int = 250
    eval_every: int = 0
    """Steps between evaluations on `eval_items` of the val split, or where there is none of the test split; 0: none."""
    eval_items: int = 200

    def __post_init__(self):
        unknown = {*self.weights, *self.joins} - set(TERMS)
        if unknown:
            raise UserError(f"there is no loss term {sorted(unknown)[0]!r}; the terms are {', '.join(TERMS)}")
        elsewhere = set(self.layers) - {term.removeprefix("hr.") for term in HR}
        if elsewhere:
            raise UserError(f"train.layers has no source {sorted(elsewhere)[0]!r}; it has image, text, fusion, decoder")
        if not any(self.weights.values()):
            raise UserError("every loss weight is 0, so there is nothing to learn; give at least one term a weight")
        if not self.active(0):
            raise UserError("no loss term is there at the first step; leave at least one out of train.joins")
        for name, choices in (
            ("schedule", ("epoch", "cosine")), ("precision", ("no", "bf16", "fp16")), ("nonfinite", ("stop", "skip")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise UserError(f"train.{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("steps", "batch_size", "accumulate", "questions", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a positive whole number")
        for name, (least, most, words) in RANGES.items():
            if not least <= getattr(self, name) <= most:  # so that no NaN passes
                raise UserError(f"train.{name} is {getattr(self, name)}; give {words}")
        for term, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"the weight of {term} is {weight}; give a number that is not below 0")
        for term, step in self.joins.items():
            if step < 0 or (step >= self.steps and self.weights.get(term)):
                raise UserError(f"{term} joins after {step} of {self.steps} steps; let it join before the last one")
        if self.batch_size % self.accumulate:
            raise UserError(f"train.batch_size {self.batch_size} does not divide into {self.accumulate} micro-batches")
        if self.cache and self.augment:
            raise UserError("cached teacher outputs are of unvaried pictures; give up train.augment or train.cache")
        if self.cache and self.shard_teacher:
            raise UserError("a teacher whose outputs are cached is whole; give up train.shard_teacher or train.cache")
        if self.queue and not self.momentum:
            raise UserError("train.queue needs momentum encoders; set train.momentum, for example to 0.995")

    def active(self, step: int) -> frozenset[str]:
        """Terms that count in a step counted from 0."""
        return frozenset(term for term, weight in self.weights.items() if weight and step >= self.joins.get(term, 0))

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Raises UserError where a name is not one of the fields, or a value none of its kind."""
        check_kinds(cls, values, "train")
        return cls(**values)

    def options(self) -> list[str]:
        """What differs from the defaults, but for the weights, as `dlip train` and `dlip distill` take it."""
        words = ["--fixed-teacher-space"] * (not self.learn_teacher_projection) + ["--cache"] * self.cache
        for name, default in TrainConfig().to_dict().items():
            value = getattr(self, name)
            if name == "joins":
                value = ",".join(f"{term}={step}" for term, step in value.items()) or default
            if value != default and name not in ("weights", "learn_teacher_projection", "cache"):
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return words

    def replace(self, **changes) -> "TrainConfig":
        return replace(self, **changes)
