"""The grids of `dlip ablate`, as tables of rows. A row states what it varies; the plan holds everything else.

A row has a name, a size, loss weights, and the paper's figures: TR@1 and IR@1 on Flickr30k, CIDEr on COCO, VQA (arXiv
2308.12956; those of `modules` are read off a figure). Students are distilled from `TEACHER`; sizes are changes of
`STUDENT`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import SPLITS
from dlip.experiments.config import DataConfig, ExperimentConfig, HeldOutConfig, MeasureConfig
from dlip.models.config import preset
from dlip.training.config import TrainConfig
from dlip.training.weights import distills, weights

TEACHER = "scenes/teacher"
STUDENT = "scenes-student"
TRAINED_PARTS = {
    "image": "scenes/encoders/{image_width}x{image_layers}/vit",
    "language": "scenes/encoders/{text_width}x{text_layers}/bert",
    "": TEACHER,
}
"""Part of a student -> model whose weights it may be initialized with. The encoders have its size and were trained by
`recipes/encoders.sh`: a ViT on labels of patches of train-large, in place of the paper's ImageNet weights, and a BERT
on captions alone. The whole student may be cut from the teacher."""
IMAGES = 500
UNLABELED = "itc,lm,vqa=2"
"""The task losses. Without ITM, which leaves chance only after 1,000 to 2,000 steps: fusion is judged by answers and
captions, retrieval by ITC."""
TASK = f"tags=30,{UNLABELED}"
"""Losses of an undistilled student. Its image encoder keeps training on the labels that it was trained on before, with
a weight that keeps them."""
DISTILLED = f"{TASK},hr=5,at=5"
"""Losses of a distilled student. In rows with our HR its weights add up to 20, as those of AT do; in the paper to 1 and
4. A weight of 5 was better than 1 for both groups on val, after 900 steps (results/tuning/weights.jsonl)."""
LEARNING_RATE = 3e-3
"""Peak learning rate of a size that `LEARNING_RATES` does not name."""
LEARNING_RATES: dict[tuple[int, int, int, int], float] = {}
"""Image width and layers, text width and layers -> peak learning rate, alone and distilled alike, chosen on val."""
UNLIKE_PAPER = (
    "HR compares how states differ from their mean over the batch, in the teacher's own space; the paper compares the\n"
    "states themselves, both sides projected. One row of the grid objectives has the paper's HR"
)
"""Difference between `FULL` and the paper that affects its conclusions."""
PAPER_HR = {"learn_teacher_projection": True, "center_states": False}
"""Settings of training with which `hr=0.25` is the paper's L_HR: the mean over four sources, both sides projected."""
PAPER_COLUMNS = {"tr1": 0, "ir1": 1, "cider": 2, "vqa": 3, "vqa_mean": 3}
"""Column of `dlip.records` -> place of the paper's figure in `Row.paper`."""


@dataclass(frozen=True)
class Plan:
    """The settings that all rows of a grid share."""

    train: TrainConfig
    seeds: int
    """Seeds of rows that a conclusion compares."""
    other_seeds: int
    """Seeds of all other rows."""
    test_images: int
    """Evaluate on the first N images of the test split."""
    test_split: str = "test"
    measure: MeasureConfig = MeasureConfig(candidates=0)
    cached_images: int = 4000
    """Maximum number of training images whose teacher outputs are cached on disk."""
    teacher: str = TEACHER
    quick: bool = False


FULL = Plan(
    TrainConfig(
        steps=800,
        batch_size=32,
        questions=3,
        optimizer="muon",
        schedule="cosine",
        warmup=50,
        label_smoothing=0.0,
        learn_teacher_projection=False,
        center_states=True,
    ),
    seeds=6,
    other_seeds=3,
    test_images=1000,
    measure=MeasureConfig(candidates=0, generate_limit=500, latency_repeats=5),
)
LONG = replace(FULL, train=FULL.train.replace(steps=1600), seeds=3, other_seeds=0)
"""Twice the steps, for the rows that a conclusion compares: a verdict that changes depends on the budget."""
QUICK = replace(
    FULL,
    train=FULL.train.replace(steps=10, warmup=4, precision="fp32"),
    seeds=1,
    other_seeds=1,
    test_images=24,
    measure=MeasureConfig(candidates=0, latency_repeats=1),
    cached_images=0,
    quick=True,
)


@dataclass(frozen=True)
class Row:
    """One model, trained once per seed. Without weights it is the teacher, which is only evaluated: in fp32 as the
    grid's teacher, in a lower precision as a model to compare students with."""

    name: str
    size: str = STUDENT
    weights: str = TASK
    paper: tuple[float | None, ...] = (None,) * 4
    """TR@1, IR@1, CIDEr, VQA accuracy."""
    trained: tuple[str, ...] = ("image",)
    """Parts that are initialized with trained weights, of `TRAINED_PARTS`."""
    images: int = IMAGES
    """Number of training images."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Fields of TrainConfig that differ from the plan's."""
    precision: str = "fp32"
    """Precision in which a row without weights is evaluated."""

    def paper_score(self, column: str) -> float:
        """The paper's figure beside a column of `dlip.records`, its VQA accuracy beside both of VQA; NaN if none."""
        value = self.paper[PAPER_COLUMNS[column]] if column in PAPER_COLUMNS else None
        return math.nan if value is None else value

    @property
    def role(self) -> str:
        if not self.weights:
            return "teacher" if self.precision == "fp32" else "quantized"
        return "distilled" if distills(weights(self.weights)) else "undistilled"

    @property
    def init_from(self) -> tuple[str, ...]:
        """Sources of the initial weights, as `dlip.checkpoints.init_from.initialize` takes them."""
        sizes = preset(self.size).to_dict()
        return tuple((f"{part}=" if part else "") + TRAINED_PARTS[part].format(**sizes) for part in self.trained)

    @property
    def split(self) -> str:
        return "train-small" if self.images <= SPLITS["train-small"] else "train-large"

    def train(self, plan: Plan, seed: int) -> TrainConfig:
        """The plan's training with this row's losses and settings."""
        cache = self.role == "distilled" and self.images <= plan.cached_images
        size = preset(self.size)
        sizes = size.image_width, size.image_layers, size.text_width, size.text_layers
        own = {"weights": weights(self.weights), "lr": LEARNING_RATES.get(sizes, LEARNING_RATE), "cache": cache}
        return plan.train.replace(seed=seed, **own | dict(self.settings))

    def experiment(self, plan: Plan, seed: int, name: str) -> ExperimentConfig:
        """The experiment of one run, for any row but the teacher's. name: that of the record."""
        distilled = self.role == "distilled"
        return ExperimentConfig(
            size=self.size,
            teacher=plan.teacher if distilled else None,
            tokenizer=None if distilled else plan.teacher,
            role=self.role,
            init_from=self.init_from,
            name=name,
            data=DataConfig(split=self.split, limit=self.images if self.images < SPLITS[self.split] else None),
            evaluation=HeldOutConfig(split=plan.test_split, limit=plan.test_images, **asdict(plan.measure)),
            train=self.train(plan, seed),
        )


@dataclass(frozen=True)
class Grid:
    name: str
    question: str
    rows: tuple[Row, ...]
    note: str = ""
    """Printed below the table: how to read it."""


def student_size(*changes: str) -> str:
    """`STUDENT` with changes, in the syntax of `dlip.models.config.preset`."""
    changes = ",".join(filter(None, changes))
    return f"{STUDENT}:{changes}" if changes else STUDENT


# --- modules: how far can each encoder be compressed? -----------------------------------------------------------------

IMAGE = {
    "tiny": "image_width=32",
    "small": "",
    "middle": "image_width=104",
    "base": "image_width=128,image_layers=5",
}
TEXT = {
    "tiny": "text_width=48",
    "small": "",
    "middle": "text_width=112,text_layers=4",
    "base": "text_width=128,text_layers=6",
}
"""Sizes of the encoders: small is the student's, base the teacher's. Shares of base's parameters: tiny a twentieth,
middle half, small a third (image) or a seventh (text)."""

SWEEPS = (
    # image     text       TR@1  IR@1  CIDEr  VQA of the paper, undistilled
    ("tiny",   "base",   (85.4, 68.4, 110.9, 71.3)),
    ("small",  "base",   (90.3, 76.2, 118.1, 73.7)),
    ("middle", "base",   (90.9, 77.5, 120.7, 74.5)),
    ("base",   "base",   (92.8, 79.2, 121.8, 75.2)),
    ("base",   "middle", (90.9, 77.7, 123.1, 74.6)),
    ("base",   "small",  (89.4, 75.3, 123.5, 73.6)),
    ("base",   "tiny",   (83.6, 69.9, 122.3, 70.9)),
    ("tiny",   "small",  (79.3, 64.4, 112.3, 69.5)),
    ("small",  "small",  (85.5, 72.2, 119.6, 72.3)),
    ("middle", "small",  (87.9, 73.2, 121.5, 72.8)),
    ("small",  "middle", (87.9, 74.5, 120.5, 73.2)),
    ("small",  "tiny",   (80.4, 62.9, 118.2, 68.4)),
)  # fmt: skip


def module_row(image: str, text: str, distilled: bool = False) -> str:
    """The name of a row of `modules`."""
    return f"image {image}, text {text}" + ", distilled" * distilled


MODULES = Grid(
    "modules",
    "How far can the image encoder and the text encoder each be compressed?",
    tuple(
        Row(module_row(image, text), student_size(IMAGE[image], TEXT[text]), TASK, paper)
        for image, text, paper in SWEEPS
    )
    + tuple(
        Row(module_row(image, text, distilled=True), student_size(IMAGE[image], TEXT[text]), DISTILLED)
        for image, text, _ in SWEEPS
    ),
    "The paper's figures are of undistilled models. Its small encoders have a quarter of base's parameters, these a\n"
    "third (image) or a seventh (text); tiny and middle have the paper's shares, a twentieth and a half.",
)

# --- fusion: how many text layers need cross-attention? The upper ones have it, as in ALBEF ---------------------------

FUSION = Grid("fusion", "How many layers need cross-attention?", tuple(
    Row(f"{count} of 6 layers fused", student_size("text_layers=6", f"fusion_layers={fused}"), DISTILLED, paper)
    for count, fused, paper in (
        (1, "5",           (84.0, 68.7, 116.7, 70.88)),
        (2, "4+5",         (85.9, 70.8, 118.3, 71.87)),
        (3, "3+4+5",       (88.0, 72.7, 119.1, 72.65)),
        (4, "2+3+4+5",     (87.3, 73.2, 118.7, 72.74)),
        (6, "0+1+2+3+4+5", (87.6, 73.5, 118.9, 73.00)),
    )
), "The paper's figures are of 1, 3, 6, 9 and 12 of 12 layers.")  # fmt: skip

# --- what is distilled ------------------------------------------------------------------------------------------------

MODALITIES = Grid("modalities", "Which representations should be distilled?", (
    Row("none", STUDENT, TASK,                                       (85.5, 72.1, 119.6, 71.24)),
    Row("image", STUDENT, f"{TASK},hr.image=20",                     (86.9, 73.1, 120.2, 72.37)),
    Row("text", STUDENT, f"{TASK},hr.text=20",                       (87.3, 72.9, 119.7, 72.22)),
    Row("image and text", STUDENT, f"{TASK},hr.image=10,hr.text=10", (88.2, 74.6, 120.4, 72.39)),
    Row("fusion", STUDENT, f"{TASK},hr.fusion=20",                   (88.6, 75.2, 120.6, 72.48)),
    Row("decoder", STUDENT, f"{TASK},hr.decoder=20",                 (87.9, 74.5, 121.3, 72.61)),
    Row("all four", STUDENT, f"{TASK},hr=5",                         (89.1, 76.0, 121.9, 72.70)),
), "The paper's last row equals that of all its losses, so it seems to include attention maps.")  # fmt: skip

ATTENTION = Grid("attention", "Which attention maps should be distilled?", (
    Row("no maps", STUDENT, TASK,                                              (85.5, 72.1, 119.6, None)),
    Row("self-attention", STUDENT, f"{TASK},at.self=10,at.decoder_self=10",    (87.2, 72.9, 120.4, None)),
    Row("cross-attention", STUDENT, f"{TASK},at.cross=10,at.decoder_cross=10", (87.7, 73.2, 120.6, None)),
    Row("both", STUDENT, f"{TASK},at=5",                                       (88.2, 73.6, 120.8, None)),
))  # fmt: skip

OBJECTIVES = Grid("objectives", "Which losses complement each other?", (
    Row("VLP", STUDENT, TASK,                  (85.5, 72.1, 119.6, 71.24)),
    Row("VLP+AT", STUDENT, f"{TASK},at=5",     (88.2, 73.6, 120.8, 72.31)),
    Row("VLP+HR", STUDENT, f"{TASK},hr=5",     (88.8, 75.4, 121.6, 72.62)),
    Row("VLP+HR as in the paper", STUDENT, f"{TASK},hr=0.25", settings=PAPER_HR),
    Row("AT+HR", STUDENT, "tags=30,hr=5,at=5", (87.4, 74.8, 120.9, 72.26)),
    Row("VLP+AT+HR", STUDENT, DISTILLED,       (89.1, 76.0, 121.9, 72.70)),
    Row("VLP+AT+HR+kd.itc", STUDENT, f"{DISTILLED},kd.itc"),
    Row("VLP+AT+HR+kd.lm", STUDENT, f"{DISTILLED},kd.lm"),
    Row("VLP+AT+HR+kd.vqa", STUDENT, f"{DISTILLED},kd.vqa=2"),
    Row("VLP+AT+HR+KD", STUDENT, f"{DISTILLED},kd.itc,kd.lm,kd.vqa=2"),
), "No row has ITM. AT+HR trains no head here; the paper's is fine-tuned on each task.")  # fmt: skip

INIT = Grid("init", "Which encoders should be initialized with trained weights?", (
    Row("neither trained", STUDENT, UNLABELED, (74.5, 57.1, 101.4, None), trained=()),
    Row("image trained", STUDENT, UNLABELED,   (85.5, 72.1, 119.6, None)),
    Row("text trained", STUDENT, UNLABELED,    (75.9, 58.5, 100.5, None), trained=("language",)),
    Row("both trained", STUDENT, UNLABELED,    (85.9, 71.4, 119.8, None), trained=("image", "language")),
), "Trained: a ViT on labels of patches, a BERT on captions alone; the paper's: published ViT and BERT.\n"
   "No row has the term tags.")  # fmt: skip

# --- beyond the paper -------------------------------------------------------------------------------------------------


def square(width: int, image_layers: int, text_layers: int, cut: bool = False) -> Row:
    """A student whose encoders have the same width: distilled, or cut from the teacher and fine-tuned."""
    sizes = f"image_width={width},text_width={width},image_layers={image_layers},text_layers={text_layers}"
    row = Row(f"{width} wide, {image_layers}+{text_layers} layers", student_size(sizes), DISTILLED)
    return replace(row, name=f"{row.name}, cut", weights=TASK, trained=("",)) if cut else row


def data_row(images: int, distilled: bool = False) -> str:
    """The name of a row of `data`."""
    return f"{images:,} images" + ", distilled" * distilled


INT8_TEACHER = Row("teacher in int8", "scenes-teacher", "", precision="int8")
SIZES = Grid("sizes", "What does a size cost, and how much of the teacher does it keep?", (
    square(32, 4, 1), square(48, 4, 2), square(64, 4, 2), square(80, 4, 2), square(112, 4, 3), square(128, 5, 6),
    square(80, 4, 2, cut=True), square(112, 4, 3, cut=True), INT8_TEACHER,
), "Cut: initialized from the teacher's weights and fine-tuned without it.")  # fmt: skip

DATA_IMAGES = (125, 250, 500, 1000, 2000, 4000)
DATA = Grid(
    "data",
    "How many labeled images is a teacher worth?",
    tuple(
        Row(data_row(images, distilled), STUDENT, DISTILLED if distilled else TASK, images=images)
        for images in DATA_IMAGES
        for distilled in (False, True)
    ),
    "The teacher was trained on none of these images.",
)

GRIDS = {g.name: g for g in (OBJECTIVES, MODALITIES, ATTENTION, INIT, SIZES, FUSION, MODULES, DATA)}
"""In the order in which `dlip ablate all` runs them."""
TEACHER_ROW = Row("teacher", "scenes-teacher", "", (92.0, 78.5, 121.8, 75.3))
"""The first row of every table; the paper's is BLIP-Base."""


def grid(name: str | Grid) -> Grid:
    """The grid of that name; a grid itself is returned as it is. Raises UserError where there is none."""
    if isinstance(name, Grid):
        return name
    if name not in GRIDS:
        raise UserError(f"there is no grid {name!r}; choose one of {', '.join(GRIDS)} or all")
    return GRIDS[name]
