"""Disagreements: the test pictures on which the student loses most against its teacher."""

from html import escape
from typing import TypedDict

import gradio as gr
import pandas as pd

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.evaluation import disagreement
from dlip.evaluation.tasks import captioning, evaluate
from dlip.evaluation.tasks.base import within
from dlip.models import tasks
from dlip.plots import disagreement_cards

from .. import events, inputs, jobs, models
from ..view import parts

TASKS = {
    "captions": "captioning",
    "answers": "vqa",
    "captions found by picture": "tr",
    "pictures found by caption": "ir",
}
RUN = {"captioning": "captioning", "vqa": "vqa", "tr": "retrieval", "ir": "retrieval"}
"""Task of dlip.evaluation.disagreement -> that of dlip.evaluate which yields its items."""
LEAST, MOST, COUNT = 10, SPLITS["test"], 12
EMPTY = f"Both models read the pictures; the {COUNT} on which the student loses most stand here, with what each said."
BATCH = 4
"""Pictures at a time: others get in between."""


class Disagreement(TypedDict):
    """One item, scored for both models; the first ones are those on which the student loses most."""

    image_id: int
    asked: str
    """The question, or the caption that is looked for; empty for captions."""
    teacher: str
    student: str
    teacher_score: float
    student_score: float
    loss: float
    measure: str


@inputs.checked
def disagreements(
    teacher: str, student: str, task: str = "captions", pictures: int = 50, progress: jobs.Progress | None = None
) -> list[Disagreement]:
    """The items of the built-in test pictures on which the student loses most, at most twelve, of a picture each.

    task: "captions", "answers", "captions found by picture" or "pictures found by caption". pictures: how many of the
    test split both models are evaluated on.
    """
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}; choose {', '.join(TASKS)}")
    pictures = inputs.whole(pictures, "pictures", LEAST, MOST)
    with jobs.turns(progress) as step:
        said, items, pair = [], [], models.pair(teacher, student)
        for vlm in pair.values():
            if tasks.TASKS[RUN[TASKS[task]]].abilities[0] not in vlm.med.abilities:
                raise UserError(f"{vlm.name} has not learnt what {task} need; choose another model, or compare others")
        data = Scenes("test", size=pictures)
        for i, vlm in enumerate(pair.values()):
            options = dict(batch_size=BATCH, progress=within(step, i / 2, (i + 1) / 2))
            if TASKS[task] == "captioning":
                said.append(captioning.predict(vlm, data, max_new_tokens=vlm.med.config.max_text, **options))
            else:
                items.append(evaluate(vlm, data, tasks=(RUN[TASKS[task]],), return_items=True, **options)["items"])
    items += [{"captioning": one.rows(captioning.ciders(one.captions, one.references))} for one in said]
    rows = disagreement.disagreements(*items, TASKS[task], COUNT)
    return [Disagreement(**row) for row in rows.to_dict("records")]


def show(found: list[Disagreement], names: tuple[str, str]) -> str:
    """A card for each item: the picture, both answers, and what is true."""
    columns = [*disagreement.COLUMNS, "measure"]
    items = disagreement.items_of(Scenes("test", size=MOST), [row["image_id"] for row in found])
    return disagreement_cards(pd.DataFrame(found, columns=columns), items, models.role(names[1], "student"), names)


def tab(names: tuple[gr.Dropdown, gr.Dropdown], picture: gr.Image) -> None:
    with gr.Row():
        task = gr.Radio(list(TASKS), value="captions", label="Compare their", scale=3, min_width=300)
        pictures = gr.Slider(LEAST, MOST, 50, step=10, label="Pictures", scale=2, min_width=200,
                             info=f"of the {SPLITS['test']:,} that test the scenes models")  # fmt: skip
    with gr.Row(elem_classes="act"):
        start = gr.Button("Find the worst", variant="primary", elem_id="find-worst", scale=0, min_width=200)
        cancel = jobs.stop_button("stop-finding")
    shown = gr.HTML(parts.hint(EMPTY), elem_id="worst")

    def find(teacher, student, task, pictures, bar=gr.Progress()):  # noqa: B008
        report = lambda share: bar(share, desc="Evaluating both models")  # noqa: E731
        found = disagreements(teacher, student, task, pictures, jobs.stoppable(report))
        none = (
            f"{escape(student)} loses on none of these {pictures:.0f} pictures; take more, or compare something else."
        )
        return show(found, (teacher, student)) if found else parts.hint(none)

    asked = [*names, task, pictures]
    jobs.started(start, cancel, find, asked, shown, voids=asked)
    gr.on([part.change for part in asked], None, None, shown, js=events.at_once(parts.hint(EMPTY)),
          api_visibility="private", trigger_mode="multiple")  # fmt: skip
    events.endpoint(disagreements, asked, events.LONG)
