"""What a model and a run are: validated dataclasses, and the sizes that have names."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from types import UnionType
from typing import get_args, get_origin

from dlip.errors import UserError, number_of
from dlip.terms import HR, TERMS, VLP

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


MOST, MOST_LAYERS, MOST_GRID = 10_000_000, 1_000, 256
"""Of anything that a model counts, of its layers and of patches a side: more is a mistake, and would not fit any
machine."""
MOST_NUMBER = 1e38
"""Of anything that is no count: more does not fit single precision."""
KINDS = {
    int: ((int,), "a whole number"), float: ((int, float), "a number"), bool: ((bool,), "true or false"),
    str: ((str,), "a word"), dict: ((dict,), "a table"), tuple: ((list, tuple), "a list of numbers"),
}  # fmt: skip
"""Type of a field -> the types that its value may have when it is read from JSON, in words."""


def check_kinds(cls: type, values: dict, what: str) -> None:
    """Raises UserError where `values` are no table of fields of a configuration, each of the type of its field."""
    known = {f.name: f.type for f in fields(cls)}
    if not isinstance(values, dict) or (unknown := set(values) - set(known)):
        said = f"has unknown names {sorted(unknown)}" if isinstance(values, dict) else "is no table of names"
        raise UserError(f"the {what} configuration {said}; dlip/config.py has them all")
    for name, value in values.items():
        one, *other = get_args(known[name]) if isinstance(known[name], UnionType) else (known[name],)
        types, words = KINDS[get_origin(one) or one]
        sound = isinstance(value, types) and (one is bool or not isinstance(value, bool))
        if sound and types == KINDS[tuple][0]:
            sound = all(type(number) in (int, float) and abs(number) < MOST_NUMBER for number in value)
        if sound and one is float:
            sound = abs(value) < MOST_NUMBER
        if not sound and not (value is None and other):
            raise UserError(f"{what}.{name} is {value!r}; it has to be {words}")


@dataclass(frozen=True)
class ModelConfig:
    """Size and vocabulary of a MED. The defaults are BLIP-Base's."""

    image_size: int = 224
    """Side of the square picture, in px."""
    patch_size: int = 16
    """Side of a patch, in px; divides image_size."""
    image_width: int = 768
    image_heads: int = 12
    image_layers: int = 12
    image_mlp: int = 0
    """Width of the image encoder's feed-forward; 0 stands for 4 x image_width."""
    text_width: int = 768
    text_heads: int = 12
    text_layers: int = 12
    text_mlp: int = 0
    """Width of the text layers' feed-forward; 0 stands for 4 x text_width (unpublished for Middle and Tiny)."""
    fusion_layers: tuple[int, ...] | None = None
    """Text layers that hold cross-attention, counted from 0; None stands for all."""
    embed_dim: int = 256
    """Width of the space in which ITC compares pictures and texts."""
    tie_decoder: bool = True
    """Decoder shares everything but self-attention with the text encoder (BLIP's pre-training); else it has its own."""
    tie_head: bool = True
    """The decoder's scores are products with the word embeddings; BLIP's published pre-training has a matrix apart."""
    vocab_size: int = 30524
    max_positions: int = 512
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    dec_id: int = 30522
    """[DEC], the first token of a text that is decoded."""
    enc_id: int = 30523
    """First token of a text read together with its picture. BLIP's original code puts [ENC] (30523) there; stock
    `transformers` leaves [CLS], so `enc_id = cls_id` gives its exact scores."""
    prompt_ids: tuple[int, ...] = ()
    """Tokens that every decoded caption starts from and that are not learnt (BLIP's captioning: "a picture of")."""
    dropout: float = 0.0
    """Share of values dropped after every sub-layer in training."""
    max_text: int = 30
    """Longest text, in tokens; longer ones are cut."""
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    image_eps: float = 1e-5
    text_eps: float = 1e-12
    """Epsilons of the layer norms."""

    def __post_init__(self):
        for name, multiple in (("image_mlp", self.image_width), ("text_mlp", self.text_width)):
            if not getattr(self, name):
                object.__setattr__(self, name, 4 * multiple)
        fusion = range(self.text_layers) if self.fusion_layers is None else sorted(set(self.fusion_layers))
        object.__setattr__(self, "fusion_layers", tuple(fusion))
        for name in ("image_mean", "image_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for f in fields(self):
            least, most = 0 if f.name.endswith("_id") else 1, MOST_LAYERS if f.name.endswith("_layers") else MOST
            if f.type is int and not least <= getattr(self, f.name) <= most:
                value = getattr(self, f.name)
                raise UserError(f"model.{f.name} is {value}; give a positive whole number of at most {most:,}")
        for width, heads in (("image_width", "image_heads"), ("text_width", "text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"model.{width} {getattr(self, width)} does not divide into {getattr(self, heads)} heads; "
                    f"choose {heads} so that it does"
                )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}; give a number from 0 to below 1")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise UserError(
                    f"model.{name} has {number_of(len(getattr(self, name)), 'number')}; give one for each of 3 colours"
                )
        for name in ("image_std", "image_eps", "text_eps"):
            value = getattr(self, name)
            if not min(value if isinstance(value, tuple) else (value,)) > 0:
                raise UserError(f"model.{name} is {value}; give numbers above 0")
        if self.image_size % self.patch_size:
            raise UserError(f"model.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.grid > MOST_GRID:
            raise UserError(f"model.image_size {self.image_size} has {self.grid:,} patches a side; at most {MOST_GRID}")
        for name in ("prompt_ids", "fusion_layers"):
            if any(type(number) is not int for number in getattr(self, name)):
                raise UserError(f"model.{name} is {getattr(self, name)}; give whole numbers")
        if not self.fusion_layers or self.fusion_layers[0] < 0 or self.fusion_layers[-1] >= self.text_layers:
            raise UserError(
                f"model.fusion_layers {self.fusion_layers} must name at least one of the {self.text_layers} text "
                f"layers, counted from 0"
            )

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """Raises UserError where a name is not one of the fields, or a value none of its kind."""
        check_kinds(cls, values, "model")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


# The paper's encoder sizes (Table 1): width, heads, layers.
IMAGE_SIZES = {"base": (768, 12, 12), "middle": (576, 9, 12), "small": (384, 6, 12), "tiny": (192, 3, 12)}
TEXT_SIZES = {"base": (768, 12, 12), "middle": (576, 12, 8), "small": (384, 12, 6), "tiny": (192, 12, 4)}


def paper_size(image: str, text: str, **changes) -> ModelConfig:
    """The model of one of the paper's image encoders and one of its text encoders: `paper_size("base", "small")`."""
    (iw, ih, il), (tw, th, tl) = IMAGE_SIZES[image], TEXT_SIZES[text]
    sizes = dict(image_width=iw, image_heads=ih, image_layers=il, text_width=tw, text_heads=th, text_layers=tl)
    return ModelConfig(**{**sizes, **changes})


def scenes_size(width: int, image_layers: int, text_layers: int, **changes) -> ModelConfig:
    """A model for the built-in scenes: 48 px pictures in 36 patches, four heads, one width for picture and text.

    The vocabulary's size and ids are those of the tokenizer trained on the scenes; `enc_id = cls_id`, so that stock
    `transformers` gives an exported model's exact scores.
    """
    sizes = dict(
        image_size=48, patch_size=8, image_width=width, image_heads=4, image_layers=image_layers,
        text_width=width, text_heads=4, text_layers=text_layers, embed_dim=64, vocab_size=128, max_positions=48,
        max_text=40, cls_id=2, sep_id=3, dec_id=5, enc_id=2, image_mean=(0.5,) * 3, image_std=(0.25,) * 3,
    )  # fmt: skip
    return ModelConfig(**{**sizes, **changes})


def photos_size(image: tuple[int, int, int], text: tuple[int, int, int], **changes) -> ModelConfig:
    """A model for a few thousand photographs on a CPU: 112 px in 49 patches; (width, heads, layers) of either side.

    The vocabulary's size and ids are those of a tokenizer trained on the captions.
    """
    (iw, ih, il), (tw, th, tl) = image, text
    sizes = dict(
        image_size=112, image_width=iw, image_heads=ih, image_layers=il, text_width=tw, text_heads=th, text_layers=tl,
        embed_dim=128, vocab_size=8192, max_positions=64, cls_id=2, sep_id=3, dec_id=5, enc_id=6,
    )  # fmt: skip
    return ModelConfig(**{**sizes, **changes})


PRESETS = {
    "blip-base": paper_size("base", "base"),
    "dlip-mid": paper_size("middle", "middle"),
    "dlip-small": paper_size("small", "small"),
    "dlip-tiny": paper_size("tiny", "tiny"),
    "scenes-teacher": scenes_size(128, 5, 6),
    "scenes-student-mid": scenes_size(112, 4, 3),
    "scenes-student": scenes_size(80, 4, 2),
    "photos-teacher": photos_size((256, 8, 6), (384, 12, 6), fusion_layers=(1, 3, 5)),
    "photos-student": photos_size((192, 6, 4), (192, 6, 3)),
}


def preset(name: str) -> ModelConfig:
    """A named size, or one with changes: `scenes-student:image_width=64,text_layers=6,fusion_layers=4+5`.

    Feed-forwards stay 4 x as wide; where the text layers change, all of them hold cross-attention if nothing else is
    said. Raises UserError where there is no such size or change.
    """
    base, _, changes = name.partition(":")
    if base not in PRESETS:
        raise UserError(f"there is no model size {base!r}; choose one of {', '.join(PRESETS)}")
    values: dict = {"image_mlp": 0, "text_mlp": 0}
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        try:
            numbers = tuple(map(int, value.split("+")))
        except ValueError:
            raise UserError(f"the size {name!r} has {change!r}; give whole numbers, as in text_layers=6") from None
        sizes = {f.name for f in fields(ModelConfig) if f.type is int and not f.name.endswith("_id")} - {"vocab_size"}
        if len(numbers) > 1 and key != "fusion_layers":
            raise UserError(f"the size {name!r} has {change!r}; give one number, only fusion_layers has several")
        if key not in sizes | {"fusion_layers"}:
            raise UserError(f"the size {name!r} changes {key!r}, which is no number of ModelConfig in dlip/config.py")
        values[key] = numbers if key == "fusion_layers" else numbers[0]
    if "text_layers" in values:
        values.setdefault("fusion_layers", None)
    config = replace(PRESETS[base], **values)
    if not 3 <= config.max_text <= config.max_positions:
        raise UserError(
            f"the size {name!r} reads {config.max_text} tokens at {config.max_positions} positions; mend one"
        )
    return config


CACHE = "runs/teacher-cache"
"""Where a teacher's outputs are kept if nothing else is said."""
CACHE_GB = 20.0
"""How many GB they may take."""
LATENCY_REPEATS = 20
"""How often a model's latency is timed if nothing else is said."""


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
    and the answers, which are a term of the task; `dlip.recipes` has its whole road."""

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
    """Read what the teacher says of pictures and captions from the disk, in float16 (dlip/cache.py)."""
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
