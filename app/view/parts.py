"""Fragments of the page as HTML, from the templates beside this file, which escape every text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import gradio as gr
import numpy as np
from markupsafe import Markup
from PIL import Image

from dlip.common.text import three_digits
from dlip.data.transforms import as_pil
from dlip.models.protocol import Model
from dlip.plots.html import environment, image_tag
from dlip.vlm import VLM

from .. import models

FOLDER = Path(__file__).parent
THUMBNAIL_SIDE = 192
ON_PICK = (FOLDER / "pick.js").read_text()
"""`js_on_load` of a gr.HTML whose buttons carry data-index; `picked` reads the one that was clicked last."""
SHOW_IMAGE = "() => document.querySelector('#image').scrollIntoView({block: 'nearest', behavior: 'smooth'})"
RELEASE_EXAMPLES = (
    "() => document.querySelectorAll('#examples [aria-pressed=true]').forEach(b => b.ariaPressed = 'false')"
)
RESIZE_CHARTS = "() => setTimeout(() => window.dispatchEvent(new Event('resize')), 100)"
"""Charts drawn in a hidden tab take its width once the tab is shown."""
SIDES = {"teacher": "Teacher", "student": "Student"}
CARDS = SIDES | {"undistilled": "Undistilled"}
"""Cards of the Compare tab; the last is that of `models.undistilled`."""


class Cost(TypedDict):
    """Cost of one call of one model."""

    ms: float
    """Milliseconds on this machine, end to end, without reading and resizing the image."""
    tokens_per_s: float | None
    """Decoder steps per second; each writes one token to every beam."""
    params_m: float
    """Millions of parameters of the whole model."""
    flops_g: float
    """Billions of floating-point operations of this call, counted."""


_templates = environment(FOLDER / "templates")
_templates.filters["three_digits"] = three_digits


def render(template: str, **values) -> Markup:
    """HTML of a template."""
    return Markup(_templates.get_template(template).render(**values))


def pair(template: str, names: Sequence[str], results: Sequence[dict], summary: str = "", **values) -> Markup:
    """Cards of teacher and student side by side, in the order of `CARDS`, and a line below.

    template: extends `pair.html`, and fills a card from its `result`, a dict with a "cost" or without.
    """
    sides = [
        {"side": side, "label": label, "name": name, "role": models.role(name, side), "result": result}
        for (side, label), name, result in zip(CARDS.items(), names, results, strict=False)
    ]
    return render(template, sides=sides, summary=summary, **values)


def picked(elem_id: str) -> str:
    """The `js` that reads the data-index (JSON) of the button that was clicked last, so that what follows belongs to
    that click and not to an earlier one."""
    return f"() => JSON.parse(document.querySelector(':is(#{elem_id}, #{elem_id} *)[data-picked]').dataset.picked)"


def savings(teacher: Cost, student: Cost) -> str:
    """One sentence on how much faster and smaller the student is."""
    params, flops = (f"{student[key] / teacher[key]:.1%}" for key in ("params_m", "flops_g"))
    return (
        f"The student was {pace(teacher['ms'] / student['ms'])} its teacher this time, with {params} of its parameters "
        f"and {flops} of its FLOPs."
    )


def pace(times: float) -> str:
    """How fast the student is, before the word "teacher". times: the teacher's time over the student's."""
    if f"{times:.1f}" == "1.0":
        return "as fast as"
    return f"{times:.1f} times as fast as" if times > 1 else f"{1 / times:.1f} times slower than"


def reading_note(vlm: VLM, med: Model, noun: str, texts: Sequence[str]) -> str:
    """A sentence if one of the texts is longer than `med` of `vlm` reads, or has words that it does not know; else
    empty."""
    for text in texts:
        if (read := vlm.words_read(text, med)) < (words := len(text.split())):
            return f"Of {noun} the model reads the first {read} of {words} words."
        if unknown := vlm.unknown_words(text, med):
            return f"The model does not know {', '.join(unknown[:3])}."
    return ""


def action(label: str, elem_id: str, min_width: int = 110) -> gr.Button:
    """The button of a row."""
    return gr.Button(label, variant="primary", scale=1, min_width=min_width, elem_id=elem_id)


def job_buttons(label: str, start: str, stop: str) -> tuple[gr.Button, gr.Button]:
    """Buttons that start and stop a long job. start, stop: their elem_id."""
    return (
        gr.Button(label, variant="primary", elem_id=start, scale=0, min_width=160),
        gr.Button("Stop", elem_id=stop, scale=0, min_width=90),
    )


def set_in_page(value: object) -> str:
    """The `js` of an event that sets its outputs to a constant, without a request."""
    return f"() => ({json.dumps(value)})"


def hint(html: str) -> str:
    """A sentence in the place of a result; html: escaped already."""
    return f'<p class="hint">{html}</p>'


def thumbnail(image: Image.Image | np.ndarray, alt: str) -> Markup:
    """An image inside the page, of at most `THUMBNAIL_SIDE` px."""
    small = as_pil(image).convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return image_tag(small, alt)


def image_buttons(buttons: Sequence[tuple[Markup, str]], label: str) -> Markup:
    """Images to choose from, for `ON_PICK`: each with its name; the first is pressed."""
    return render("image_buttons.html", buttons=buttons, label=label)
