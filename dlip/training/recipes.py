"""The paper's road as configuration: pre-training with distillation on the 4M set, then fine-tuning at 384 px.

A recipe is options of `dlip train` and `dlip distill`; what is typed besides comes after them and wins. What is the
paper's (arXiv 2308.12956, section 4.1) and what it leaves out and we chose is told apart in docs/training.md.
"""

from dataclasses import dataclass

from dlip.common.errors import UserError

PHOTOS = "--precision bf16 --augment --flip --workers 8"
TUNING = f"--size dlip-small:image_size=384 --schedule cosine --weight-decay 0.05 --batch-size 256 {PHOTOS}"


@dataclass(frozen=True)
class Recipe:
    """How long, with which options, and the terms of the loss: those of the task, and those that a teacher adds."""

    epochs: int
    options: str
    task: str
    handed: str

    def words(self, command: str) -> list[str]:
        """As they would be typed behind `train` or `distill`."""
        terms = f"{self.task},{self.handed}" if command == "distill" else self.task
        return [*self.options.split(), "--weights", terms]


RECIPES = {
    "pretrain": Recipe(
        20,
        "--size dlip-small --batch-size 2048 --lr 5e-4 --warmup 3000 --schedule epoch --decay 0.85 "
        f"--weight-decay 0.02 --label-smoothing 0.1 --momentum 0.995 --queue 57344 --alpha 0.4 {PHOTOS}",
        "itc,itm,lm", "hr=0.25,at",
    ),
    "retrieval": Recipe(
        6,
        f"{TUNING} --lr 1e-5 --warmup 0 --momentum 0.995 --queue 57344 --alpha 0.4",
        "itc,itm", "hr.image=0.25,hr.text=0.25,hr.fusion=0.25,at.self,at.cross",
    ),
    "captioning": Recipe(
        5,
        f"{TUNING} --lr 1e-5 --warmup 0 --label-smoothing 0.1",
        "lm", "hr.image=0.25,hr.decoder=0.25,at.decoder_self,at.decoder_cross",
    ),
    "vqa": Recipe(
        10,
        f"{TUNING} --lr 2e-5 --warmup 0 --label-smoothing 0.1 --questions 2",
        "vqa", "hr.image=0.25,kd.vqa",
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """Raises UserError where there is none of that name."""
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def spelled_out(words: list[str]) -> list[str]:
    """A command's words, those of `--recipe NAME` being its options, put first. Raises UserError as `recipe`."""
    typed = [
        part
        for word in words
        for part in (word.split("=", 1) if word.startswith(("--recipe=", "--steps=")) else [word])
    ]
    if typed[:1] not in (["train"], ["distill"]) or "--recipe" not in typed[:-1]:
        return words
    if typed.count("--recipe") > 1:
        raise UserError("--recipe is given more than once; give one")
    at = typed.index("--recipe")
    chosen, rest = recipe(typed[at + 1]), [*typed[1:at], *typed[at + 2 :]]
    length = [] if "--steps" in rest else ["--epochs", str(chosen.epochs)]
    return [typed[0], *chosen.words(typed[0]), *length, *rest]
