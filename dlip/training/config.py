"""How a model is trained: a validated dataclass, the only place where a training option is declared."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from dlip.common.errors import UserError
from dlip.common.fields import Config, check, option
from dlip.common.options import comma_separated
from dlip.models.tasks import SOURCES
from dlip.training import weights as terms

CACHE = "runs/cache"
"""Default folder of cached outputs of teachers and image backbones."""
CACHE_GB = 20.0
"""Default limit of that folder in GB."""


@dataclass(frozen=True)
class TrainConfig(Config):
    """How a model is trained.

    The defaults are the paper's where it states them, except that ITC has no momentum encoders and that VQA is a term
    of the task loss. `dlip distill` trains `vlp,hr,at` by default, each term with weight 1; the paper's L_HR is
    `hr=0.25`. `dlip.training.recipes` has the paper's full schedule.
    """

    steps: int = option(1000, least=1)
    """Optimizer steps."""
    epochs: float | None = option(None, above=0, most=1e9)
    """Passes over the training images; replaces --steps."""
    batch_size: int = option(96, least=1)
    """Images per optimizer step, over all processes."""
    accumulate: int = option(1, least=1)
    """Micro-batches per optimizer step; negatives come from within a micro-batch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer: "adamw" (the paper), or "muon" for the matrices of the transformer layers and AdamW for the rest."""
    lr: float = option(5e-4, above=0, most=1)
    """Peak learning rate."""
    schedule: Literal["epoch", "cosine"] = "epoch"
    """Learning rate schedule: "epoch" multiplies by --decay every epoch (the paper), "cosine" falls to 0."""
    decay: float = option(0.85, above=0, most=1)
    """Factor of the "epoch" schedule, per epoch."""
    warmup: int = option(100, least=0)
    """Steps of linear warm-up of the learning rate."""
    weight_decay: float = option(0.02, least=0, most=1e6)
    """Decoupled weight decay of matrices, per unit of the learning rate."""
    clip: float = option(1.0, above=0)
    """Maximum norm of the gradient."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is non-finite: stop the run, or skip the step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision: "auto" is bf16 where the machine has instructions for it, else fp32; fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the layers of teacher and student with torch.compile; the first steps take minutes."""
    seed: int = option(0, least=0, most=2**32 - 1)
    """Seed of the initial weights, the data order and dropout."""
    weights: dict[str, float] = option(
        factory=partial(terms.weights, "vlp"), parse=terms.weights, show=terms.terms_text, metavar="TERMS"
    )
    """Loss terms and groups with their weights, as in vlp,hr,kd.lm=0.5; a term without weight is not computed."""
    start_term_at: dict[str, int] = option(factory=dict, parse=terms.starts, show=terms.terms_text, metavar="TERMS")
    """Optimizer steps after which loss terms join, as in vlp=500,itm=900; 0 for terms not named."""
    layers: dict[str, tuple[tuple[int, int], ...]] = option(
        factory=dict, parse=terms.layers, show=terms.layers_text, metavar="PAIRS", command="distill"
    )
    """Layers that hr.* and at.* compare as teacher:student pairs, as in fusion=5:1+3:0; by default the last ones."""
    learn_teacher_projection: bool = option(True, flag="fixed_teacher_space", inverse=True, command="distill")
    """Compare hr.* in the teacher's own space and project only the student's states; by default both are projected (the
    paper)."""
    center_states: bool = option(False, command="distill")
    """Subtract the batch mean from the states that hr.* compares (beyond the paper)."""
    label_smoothing: float = option(0.1, least=0, most=1)
    """Label smoothing of lm and vqa."""
    momentum: float = option(0.0, least=0, most=1)
    """Decay of ITC's momentum encoders (BLIP: 0.995); 0 trains without them."""
    queue: int = option(0, least=0, most=10**8)
    """Feature vectors in ITC's queue (BLIP: 57600); needs --momentum."""
    alpha: float = option(0.4, least=0, most=1)
    """Weight of ITC's soft labels under momentum, reached linearly over the first epoch."""
    augment: bool = option(False, negatable=True)
    """Augment the training images: crop photos, shift scenes."""
    flip: bool = option(False, negatable=True)
    """With --augment, also mirror photos, but none whose texts contain the English word left or right."""
    freeze: tuple[str, ...] = option((), parse=comma_separated, show=",".join, metavar="PARTS")
    """Parts that stay as they are, comma-separated: image and text, all that ITC reads of an image or of a text. With
    both, itm, lm and vqa train cross-attention, the decoder's self-attention and the heads."""
    backbone_lr: float = option(0.0, least=0, most=1)
    """Peak learning rate of an image backbone; 0 freezes it."""
    backbone_stages: int = option(0, least=0, most=100)
    """Last stages of an EfficientNet that --backbone-lr trains, the others stay frozen; 0 trains all."""
    cache_features: int = option(0, least=0, most=100)
    """Cache the features of frozen image backbones, or of their frozen stages, on disk, for this many augmented views
    of each image; 0 computes them anew in every step."""
    questions: int = option(1, least=1)
    """Questions per image and step."""
    cache: bool = option(False, hidden=True)
    """Read the teacher's outputs from a cache on disk, in float16 (dlip/training/caches/teacher.py)."""
    workers: int = option(0, least=0, most=1000)
    """Processes that load images ahead of the training loop."""
    log_every: int = option(20, least=1)
    """Steps between rows of the log."""
    save_every: int = option(250, least=1)
    """Steps between checkpoints."""
    eval_every: int = option(0, least=0)
    """Steps between quick evaluations on val, or on test where there is no val; 0 for none."""
    eval_items: int = option(200, least=1)
    """Images of a quick evaluation."""

    def __post_init__(self):
        check(self, "train.")
        pairs = {source: tuple(map(tuple, layers)) for source, layers in self.layers.items()}
        object.__setattr__(self, "layers", pairs)
        if wrong := [source for source, some in pairs.items() if not some or any(len(pair) != 2 for pair in some)]:
            raise UserError(
                f"train.layers[{wrong[0]!r}] is {pairs[wrong[0]]}; give pairs (teacher layer, student layer)"
            )
        for term in (*self.weights, *self.start_term_at):
            terms.check_name(term)
        if unknown := sorted(set(self.layers) - set(SOURCES)):
            raise UserError(f"train.layers has no source {unknown[0]!r}; it has {', '.join(SOURCES)}")
        for term, weight in self.weights.items():
            if weight < 0:
                raise UserError(f"the weight of {term} is {weight}; give a number, at least 0")
        if not any(self.weights.values()):
            raise UserError("every loss weight is 0, so there is nothing to learn; give at least one term a weight")
        if not self.active(0):
            raise UserError("no loss term is active in the first step; remove at least one from train.start_term_at")
        for term, step in self.start_term_at.items():
            if step < 0 or (step >= self.steps and self.weights.get(term) and not self.epochs):
                raise UserError(f"{term} joins after {step} of {self.steps} steps; let it join before the last one")
        if self.batch_size % self.accumulate:
            raise UserError(f"train.batch_size {self.batch_size} is not divisible by {self.accumulate} micro-batches")
        if self.cache and self.augment:
            raise UserError("cached teacher outputs are those of unaugmented images; drop train.augment or train.cache")
        if unknown := sorted(set(self.freeze) - {"image", "text"}):
            raise UserError(f"train.freeze has no part {unknown[0]!r}; it has image and text")
        if idle := [
            t for t, weight in self.weights.items() if weight and set(self.freeze) >= terms.registry()[t].trains
        ]:
            raise UserError(f"{idle[0]} trains nothing that is not frozen; set its weight to 0, or change train.freeze")
        if "image" in self.freeze and self.backbone_lr:
            raise UserError("the image backbone is frozen too; drop train.backbone_lr, or image of train.freeze")
        if self.backbone_stages and not self.backbone_lr:
            raise UserError("train.backbone_stages needs a learning rate; set train.backbone_lr")
        if self.cache_features > 1 and not self.augment:
            raise UserError("without augmentation all views of an image are equal; use 1 of them, or --augment")
        if self.flip and not self.augment:
            raise UserError("train.flip mirrors augmented photographs; set train.augment too")
        if self.queue and not self.momentum:
            raise UserError("train.queue needs momentum encoders; set train.momentum, for example to 0.995")
        if self.momentum and not self.weights.get("itc"):
            raise UserError("momentum encoders serve itc alone; give itc a weight, or set train.momentum to 0")

    def active(self, step: int) -> frozenset[str]:
        """Terms that are computed in a step, counted from 0."""
        starts = self.start_term_at
        return frozenset(term for term, weight in self.weights.items() if weight and step >= starts.get(term, 0))

    def for_dataset(self, size: int) -> "TrainConfig":
        """The configuration with `epochs` resolved to steps over `size` training images, and `precision` chosen."""
        from dlip.models.fast import precision  # here, because the command line's help needs no torch

        chosen = precision.best() if self.precision == "auto" else self.precision
        steps = self.steps if self.epochs is None else max(1, round(self.epochs * self.steps_per_epoch(size)))
        return self.replace(steps=steps, epochs=None, precision=chosen)

    def steps_per_epoch(self, size: int) -> int:
        """Steps of a pass over `size` training images; what is left after whole batches is dropped."""
        return max(1, size // self.batch_size)
