"""Disagreements: the test images on which the student loses most against its teacher."""

from html import escape
from typing import Annotated, Literal, TypedDict

import gradio as gr
import pandas as pd
from pydantic import Field

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.evaluation import disagreement
from dlip.evaluation.evaluate import evaluate
from dlip.evaluation.tasks.base import subrange
from dlip.models import tasks
from dlip.plots import disagreement_cards

from .. import models
from ..endpoints import LONG, Text, api, checked, hint_of, run_job
from ..view import parts

COMPARISONS = {
    "captions": ("captioning", "captioning"),
    "answers": ("vqa", "vqa"),
    "captions found by image": ("retrieval", "tr"),
    "images found by caption": ("retrieval", "ir"),
}
"""What the page offers -> task of `dlip.evaluate`, and kind of its items in `dlip.evaluation.disagreement`."""
MIN_IMAGES, MAX_IMAGES, SHOWN = 10, SPLITS["test"], 12
EMPTY = (
    f"Both models read drawn scenes; the {SHOWN} on which the student loses most appear here, with both outputs. "
    "In place of the shipped models of photographs, which never saw such scenes, those of scenes are compared."
)
BATCH = 4
"""Images at a time; other visitors' requests run in between."""


class Disagreement(TypedDict):
    """One item, scored for both models."""

    image_id: int
    asked: str
    """The question, or the caption to search for; empty for captions."""
    teacher: str
    student: str
    teacher_score: float
    student_score: float
    loss: float
    measure: str


@checked
def disagreements(
    teacher: Text,
    student: Text,
    task: Literal["captions", "answers", "captions found by image", "images found by caption"] = "captions",
    images: Annotated[int, Field(ge=MIN_IMAGES, le=MAX_IMAGES)] = 50,
    progress: models.Progress | None = None,
) -> list[Disagreement]:
    """The items of the built-in test images on which the student loses most, the worst first, at most twelve.

    task: "captions", "answers", "captions found by image" or "images found by caption". images: number of test images
    that both models are evaluated on. Raises UserError for the shipped models of photographs: the images are scenes.
    """
    if out_of_domain := models.out_of_domain("scenes", (teacher, student)):
        names = " and ".join(sorted(out_of_domain))
        raise UserError(f"the models {names} learned photographs, but these images are drawn scenes; choose others")
    evaluated, kind = COMPARISONS[task]
    with models.in_turns(progress) as step:
        items, pair = [], models.pair(teacher, student)
        for vlm in pair.values():
            if tasks.TASKS[evaluated].abilities[0] not in vlm.med.abilities:
                raise UserError(f"the model {vlm.name} was not trained for {task}; choose another model or comparison")
        data = Scenes("test", size=images)
        for i, vlm in enumerate(pair.values()):
            options = dict(batch_size=BATCH, progress=subrange(step, i / 2, (i + 1) / 2))
            items.append(evaluate(vlm, data, tasks=(evaluated,), java=False, return_items=True, **options)["items"])
    rows = disagreement.disagreements(*items, kind, SHOWN)
    return [Disagreement(**row) for row in rows.to_dict("records")]


def show(rows: list[Disagreement], names: tuple[str, str]) -> str:
    """A card for each item: the image, both outputs, and the truth."""
    items = disagreement.items_of(Scenes("test", size=MAX_IMAGES), [row["image_id"] for row in rows])
    return disagreement_cards(
        pd.DataFrame(rows, columns=[*Disagreement.__annotations__]), items, models.role(names[1], "student"), names
    )


def tab(image: gr.Image, names: tuple[gr.Dropdown, gr.Dropdown], subject: gr.Textbox) -> None:
    with gr.Row():
        task = gr.Radio(list(COMPARISONS), value="captions", label="Compare their", scale=3, min_width=300)
        info = f"of the {SPLITS['test']:,} that test the models of scenes"
        sizes = dict(step=10, label="Images", info=info, scale=2, min_width=200)
        count = gr.Slider(MIN_IMAGES, MAX_IMAGES, 50, **sizes)
    with gr.Row(elem_classes="act"):
        start, stop = parts.job_buttons("Find the worst", "find-worst", "stop-finding")
    shown = gr.HTML(parts.hint(EMPTY), elem_id="worst")

    def find(teacher, student, task, count, progress):
        teacher, student = models.pair_for("scenes", (teacher, student))
        rows = disagreements(teacher, student, task, count, progress)
        none = f"{escape(student)} loses on none of these {count:.0f} images; take more, or compare something else."
        return show(rows, (teacher, student)) if rows else parts.hint(none)

    run_job(start, stop, find, hint_of, [*names, task, count], [shown], "Evaluating both models", shown)
    api(disagreements, LONG)
