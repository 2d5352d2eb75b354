"""The grids of `dlip ablate`: what is varied, as tables; all else is that of the plan, the same for every row.

A row is a name, a size, the weights of its losses, and the paper's figures beside it: Flickr30k's TR@1 and IR@1, COCO's
CIDEr, VQA (arXiv 2308.12956; those of `modules` are read off a figure). Students are distilled from `TEACHER`, sizes
are changes of `STUDENT`.
"""

from dataclasses import dataclass, replace

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import SPLITS
from dlip.experiments.config import DataConfig, ExperimentConfig, HeldOutConfig
from dlip.training.config import TrainConfig
from dlip.training.terms import distills, weights

TEACHER = "scenes/teacher"
STUDENT = "scenes-student"
IMAGES = 4000
VLP = "itc,lm,vqa"
"""The paper's task losses without ITM: matching stays at chance until ITC is good, which takes more steps than a grid's
runs have. With ITM in the last third, re-ranking took some 15 points from ITC's own TR@1
(results/tuning/ablations-with-itm.jsonl). So retrieval ranks by ITC alone, for the teacher too."""
TASK = f"tags,{VLP}"
"""Losses of an undistilled student. Its image encoder starts with labels, as the paper's with ImageNet weights."""
DISTILLED = f"{TASK},hr,at"
"""Losses of a distilled student. HR weighs four times the mean over its sources and AT four times that over its maps in
every row: the paper's sum of three losses, with these two weighted by four, which shows in few steps."""
UNLIKE_PAPER = (
    "HR compares how states differ from their mean over the batch, in the teacher's own space; the paper compares the\n"
    "states themselves, both sides projected"
)
"""Where `FULL` differs from the paper in a way that bears on its conclusions; `p1-unit` and `p2-unit-center` of
results/tuning/scenes.jsonl show what it is worth."""
LATE_TERMS = ("itm", "kd.itm", "kd.vqa")
"""Expensive terms that need trained representations; they join for the last quarter."""


@dataclass(frozen=True)
class Plan:
    """What all rows of a grid share."""

    train: TrainConfig
    seeds: int
    test_images: int
    """Number of images of the test split to evaluate on, the first ones."""
    candidates: int = 0
    """Candidates that ITM re-ranks in retrieval."""
    cached_images: int = IMAGES
    """Maximum number of training images whose teacher outputs are cached on disk."""
    teacher: str = TEACHER
    latency_repeats: int = HeldOutConfig.latency_repeats
    quick: bool = False


FULL = Plan(
    TrainConfig(
        steps=1600, batch_size=32, lr=3e-3, schedule="cosine", warmup=100, label_smoothing=0.0, precision="bf16",
        learn_teacher_projection=False, center_states=True,
    ),
    seeds=3, test_images=500,
)  # fmt: skip
QUICK = replace(
    FULL, train=FULL.train.replace(steps=10, warmup=4, precision="no"), seeds=1, test_images=24,
    cached_images=0, latency_repeats=1, quick=True,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model that is trained once per seed. Without weights it is the teacher, which is only measured."""

    name: str
    size: str = STUDENT
    weights: str = TASK
    paper: tuple[float | None, ...] = (None,) * 4
    """TR@1, IR@1, CIDEr, VQA."""
    init_from: tuple[str, ...] = ()
    """Parts that are initialized from the teacher's weights, of `dlip.checkpoints.init_from.PARTS`."""
    images: int = IMAGES
    """Number of training images."""

    @property
    def role(self) -> str:
        if not self.weights:
            return "teacher"
        return "distilled" if distills(weights(self.weights)) else "undistilled"

    @property
    def split(self) -> str:
        return "train-small" if self.images <= SPLITS["train-small"] else "train-large"

    def train(self, plan: Plan, seed: int) -> TrainConfig:
        """The plan's training with this row's losses.

        Where tags are among them, the first quarter of the steps has tags alone; late terms join for the last quarter.
        """
        terms, quarter = weights(self.weights), plan.train.steps // 4
        joins = {term: quarter for term in terms if "tags" in terms and term != "tags"}
        joins |= {term: 3 * quarter for term in terms if term in LATE_TERMS}
        cache = self.role == "distilled" and self.images <= plan.cached_images
        return plan.train.replace(weights=terms, joins=joins, seed=seed, cache=cache)

    def experiment(self, plan: Plan, seed: int, name: str) -> ExperimentConfig:
        """The experiment of one run; `name` is that of its record. Not for the teacher's row."""
        distilled = self.role == "distilled"
        return ExperimentConfig(
            size=self.size,
            teacher=plan.teacher if distilled else None,
            tokenizer=None if distilled else plan.teacher,
            role=self.role,
            init_from=tuple(f"{part}={plan.teacher}" for part in self.init_from),
            name=name,
            data=DataConfig(split=self.split, limit=self.images if self.images < SPLITS[self.split] else None),
            evaluation=HeldOutConfig(
                split="test", limit=plan.test_images, candidates=plan.candidates, latency_repeats=plan.latency_repeats
            ),
            train=self.train(plan, seed),
        )


@dataclass(frozen=True)
class Grid:
    name: str
    question: str
    rows: tuple[Row, ...]
    note: str = ""
    """How the paper's figures are to be read."""


def changed(*changes: str) -> str:
    """`STUDENT` with changes, as `dlip.models.config.preset` reads them."""
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
"""Sizes of the encoders: small is the student's, base the teacher's; of its parameters tiny has about a twentieth,
middle half, small a third (image) and a seventh (text)."""

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


def pair(image: str, text: str, distilled: bool = False) -> str:
    """The name of a row of `modules`."""
    return f"image {image}, text {text}" + ", distilled" * distilled


MODULES = Grid(
    "modules", "How far can the image encoder and the text encoder each be compressed?",
    tuple(Row(pair(image, text), changed(IMAGE[image], TEXT[text]), TASK, paper) for image, text, paper in SWEEPS)
    + tuple(Row(pair(image, text, True), changed(IMAGE[image], TEXT[text]), DISTILLED) for image, text, _ in SWEEPS),
    "The paper's, undistilled, read off a figure: its small encoders have a quarter of base's parameters, these a\n"
    "third (image) and a seventh (text); tiny and middle have the paper's shares, a twentieth and a half.\n"
    "One rate and as many steps for all: the larger ones get less far in them.",
)  # fmt: skip

# --- fusion: how many text layers need cross-attention? The upper ones hold it, as in ALBEF ---------------------------

FUSION = Grid("fusion", "How many layers need cross-attention?", tuple(
    Row(f"{count} of 6 layers fused", changed("text_layers=6", f"fusion_layers={fused}"), DISTILLED, paper)
    for count, fused, paper in (
        (1, "5",           (84.0, 68.7, 116.7, 70.88)),
        (2, "4+5",         (85.9, 70.8, 118.3, 71.87)),
        (3, "3+4+5",       (88.0, 72.7, 119.1, 72.65)),
        (4, "2+3+4+5",     (87.3, 73.2, 118.7, 72.74)),
        (6, "0+1+2+3+4+5", (87.6, 73.5, 118.9, 73.00)),
    )
), "The paper's: 1, 3, 6, 9 and 12 of 12 layers.")  # fmt: skip

# --- what the teacher hands over --------------------------------------------------------------------------------------

MODALITIES = Grid("modalities", "Which representations should the teacher hand over?", (
    Row("none", STUDENT, TASK,                                     (85.5, 72.1, 119.6, 71.24)),
    Row("image", STUDENT, f"{TASK},hr.image=4",                    (86.9, 73.1, 120.2, 72.37)),
    Row("text", STUDENT, f"{TASK},hr.text=4",                      (87.3, 72.9, 119.7, 72.22)),
    Row("image and text", STUDENT, f"{TASK},hr.image=2,hr.text=2", (88.2, 74.6, 120.4, 72.39)),
    Row("fusion", STUDENT, f"{TASK},hr.fusion=4",                  (88.6, 75.2, 120.6, 72.48)),
    Row("decoder", STUDENT, f"{TASK},hr.decoder=4",                (87.9, 74.5, 121.3, 72.61)),
    Row("all four", STUDENT, f"{TASK},hr",                         (89.1, 76.0, 121.9, 72.70)),
), "The paper's last row seems to include attention maps, as it equals that of all its losses.")  # fmt: skip

ATTENTION = Grid("attention", "Which attention maps should the teacher hand over?", (
    Row("no maps", STUDENT, TASK,                                            (85.5, 72.1, 119.6, None)),
    Row("self-attention", STUDENT, f"{TASK},at.self=2,at.decoder_self=2",    (87.2, 72.9, 120.4, None)),
    Row("cross-attention", STUDENT, f"{TASK},at.cross=2,at.decoder_cross=2", (87.7, 73.2, 120.6, None)),
    Row("both", STUDENT, f"{TASK},at",                                       (88.2, 73.6, 120.8, None)),
))  # fmt: skip

OBJECTIVES = Grid("objectives", "Which losses add up?", (
    Row("VLP", STUDENT, TASK,            (85.5, 72.1, 119.6, 71.24)),
    Row("VLP+AT", STUDENT, f"{TASK},at", (88.2, 73.6, 120.8, 72.31)),
    Row("VLP+HR", STUDENT, f"{TASK},hr", (88.8, 75.4, 121.6, 72.62)),
    Row("AT+HR", STUDENT, "tags,hr,at",  (87.4, 74.8, 120.9, 72.26)),
    Row("VLP+AT+HR", STUDENT, DISTILLED, (89.1, 76.0, 121.9, 72.70)),
    Row("VLP+AT+HR+kd.itc", STUDENT, f"{DISTILLED},kd.itc"),
    Row("VLP+AT+HR+kd.itm", STUDENT, f"{DISTILLED},itm,kd.itm"),
    Row("VLP+AT+HR+kd.lm", STUDENT, f"{DISTILLED},kd.lm"),
    Row("VLP+AT+HR+kd.vqa", STUDENT, f"{DISTILLED},kd.vqa"),
    Row("VLP+AT+HR+KD", STUDENT, f"{DISTILLED},itm,kd"),
), "AT+HR trains no head here; the paper's is fine-tuned on each task. ITM is learnt with kd.itm alone, and told by\n"
   "what it does to the other scores: nothing here is found by ITM.")  # fmt: skip

INIT = Grid("init", "Where should the student's weights begin?", (
    Row("from scratch", STUDENT, VLP,    (74.5, 57.1, 101.4, None)),
    Row("image inherited", STUDENT, VLP, (85.5, 72.1, 119.6, None), init_from=("image",)),
    Row("text inherited", STUDENT, VLP,  (75.9, 58.5, 100.5, None), init_from=("language",)),
    Row("both inherited", STUDENT, VLP,  (85.9, 71.4, 119.8, None), init_from=("image", "language")),
), "No labels here. Inherited: the teacher's evenly spaced layers, cut in width, what a ViT has of the image encoder\n"
   "and what a BERT has of the text's, without cross-attention; the paper's: published ViT and BERT.")  # fmt: skip

# --- beyond the paper -------------------------------------------------------------------------------------------------


def square(width: int, image_layers: int, text_layers: int) -> Row:
    """A distilled student of one width for picture and text."""
    sizes = f"image_width={width},text_width={width},image_layers={image_layers},text_layers={text_layers}"
    return Row(f"{width} wide, {image_layers}+{text_layers} layers", changed(sizes), DISTILLED)


SIZES = Grid("sizes", "What does a size cost, and what does it keep?", (
    square(32, 2, 1), square(48, 2, 1), square(48, 4, 2), square(64, 3, 2), square(80, 2, 1), square(80, 4, 2),
    square(80, 4, 4), square(104, 4, 2), square(112, 4, 3), square(128, 3, 2), square(128, 5, 6),
), "One rate and as many steps for all, tuned for none: the wider ones get less far in them.")  # fmt: skip

DATA = Grid("data", "From how many pictures on does distillation pay?", tuple(
    Row(f"{images:,} pictures" + ", distilled" * (losses == DISTILLED), STUDENT, losses, images=images)
    for images in (250, 1000, 4000, 20_000, 200_000) for losses in (TASK, DISTILLED)
), f"A run draws {FULL.train.steps * FULL.train.batch_size:,} pictures: of 200,000 a quarter, each once.")  # fmt: skip

GRIDS = {g.name: g for g in (MODULES, FUSION, MODALITIES, ATTENTION, OBJECTIVES, INIT, SIZES, DATA)}
TEACHER_ROW = Row("teacher", TEACHER, "", (92.0, 78.5, 121.8, 75.3))
"""The first row of every table; the paper's is BLIP-Base."""


def grid(name: str) -> Grid:
    """Raises UserError where there is no grid of that name."""
    if name not in GRIDS:
        raise UserError(f"there is no grid {name!r}; choose one of {', '.join(GRIDS)} or all")
    return GRIDS[name]
