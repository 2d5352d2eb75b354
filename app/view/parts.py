"""Pieces of the page as HTML: a model's card, its cost, buttons; every text from outside is escaped here."""

from collections.abc import Sequence
from html import escape
from typing import TypedDict

import numpy as np
from PIL import Image

from dlip.plots.html import data_uri
from dlip.vlm import VLM

PICK = """
element.addEventListener("click", event => {
    const button = event.target.closest("[data-index]");
    if (!button) return;
    element.querySelectorAll("[aria-pressed=true]").forEach(other => other.setAttribute("aria-pressed", "false"));
    if (button.ariaPressed) button.setAttribute("aria-pressed", "true");
    element.dataset.picked = button.dataset.index;
    trigger("click");
});
"""
"""`js_on_load` of a gr.HTML whose buttons carry data-index: `picked` tells it of the one that was clicked last, and a
button that can stay pressed does."""
SEEN = "() => document.querySelector('#picture').scrollIntoView({block: 'nearest', behavior: 'smooth'})"
"""The picture comes into sight."""
RELEASE = "() => document.querySelectorAll('#examples [aria-pressed=true]').forEach(b => b.ariaPressed = 'false')"
"""No example is the chosen one any more."""
CLEAR = "bad => { if (bad) document.querySelector('#picture [aria-label=\"Remove Image\"]')?.click() }"
"""Takes the picture away if it is bad."""
RESIZE = "() => setTimeout(() => window.dispatchEvent(new Event('resize')), 100)"
"""Charts that were drawn while their tab was hidden take the width that they have now."""
WRITTEN = '<abbr title="tokens that each beam wrote, ends of texts among them">tokens/s</abbr>'
SIDES = {"teacher": "Teacher", "student": "Student"}


def picked(elem_id: str) -> str:
    """The `js` that tells the data-index of the button that was clicked last. What follows it is asked for with that,
    and no earlier click's answer can come behind the last one's."""
    return f"() => Number(document.querySelector(':is(#{elem_id}, #{elem_id} *)[data-picked]').dataset.picked)"


class Cost(TypedDict):
    """What one call of one model cost."""

    ms: float
    """Milliseconds on this machine, end to end, the picture's reading and resizing apart."""
    tokens_per_s: float | None
    """Steps of the decoder a second: each writes one token, a word, a piece of one or the end, to every beam."""
    params_m: float
    """Millions of parameters of the whole model."""
    flops_g: float
    """Billions of floating-point operations of this call, counted."""


def pair(cards: dict[str, str], summary: str = "") -> str:
    """The two models' cards side by side, and a line under both."""
    line = f'<p class="summary">{escape(summary)}</p>' if summary else ""
    return f'<div class="pair">{"".join(cards.values())}</div>{line}'


def card(side: str, role: str, name: str, body: str, cost: Cost | None = None) -> str:
    """One model's card. side: of `SIDES`; role: a key of dlip.plots.style.COLORS; body: HTML."""
    foot = f"<footer>{''.join(f'<span>{part}</span>' for part in costs(cost))}</footer>" if cost else ""
    head = f"<header><b>{SIDES[side]}</b> <span>{escape(name)}</span></header>"
    return f'<article class="card {role}" aria-label="{SIDES[side]} {escape(name)}">{head}{body}{foot}</article>'


def costs(cost: Cost) -> list[str]:
    parts = [f"<b>{cost['ms']:.0f}</b> ms"]
    if cost["tokens_per_s"] is not None:
        parts.append(f"<b>{cost['tokens_per_s']:.0f}</b> {WRITTEN}")
    return [*parts, f"<b>{short(cost['params_m'])}</b>M parameters", f"<b>{short(cost['flops_g'])}</b> GFLOPs"]


def short(number: float) -> str:
    """Three digits of a number, as 3.06 or 224."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def saves(teacher: Cost, student: Cost) -> str:
    """One sentence on how much faster and smaller the student is."""
    faster = teacher["ms"] / student["ms"]
    pace = f"{faster:.1f} times faster" if faster >= 1 else f"{1 / faster:.1f} times slower"
    pace = "equally fast" if pace.startswith("1.0 ") else pace
    size, work = (teacher[key] / student[key] for key in ("params_m", "flops_g"))
    return f"The student was {pace} this time, with {_times(size)} the parameters and {_times(work)} the operations."


def _times(ratio: float) -> str:
    said = f"1/{ratio:.1f} of" if ratio >= 1 else f"{1 / ratio:.1f} times"
    return "all" if said in ("1/1.0 of", "1.0 times") else said


def unread(vlm: VLM, noun: str, texts: Sequence[str]) -> str:
    """What to know where one of the texts is longer than the model reads; else nothing."""
    for text in texts:
        if (read := vlm.words_read(text)) < (words := len(text.split())):
            return f"Of {noun} the model reads the first {read} of {words} words."
    return ""


def bar(share: float, label: str) -> str:
    """A labelled bar of a share from 0 to 1; label: HTML."""
    fill = f'<i style="width: {100 * share:.1f}%"></i>'
    return f'<div class="bar">{label}<span class="track">{fill}</span><span>{100 * share:.1f}%</span></div>'


def hint(said: str) -> str:
    """A sentence where nothing is to be shown; said: HTML."""
    return f'<p class="hint">{said}</p>'


def picture(image: Image.Image | np.ndarray, alt: str, side: int = 96) -> str:
    """A picture inside the page, a small one pixel by pixel, a large one as JPEG of at most `side` px."""
    image = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    small = max(image.size) <= side
    if not small:
        image = image.copy()
        image.thumbnail((2 * side, 2 * side))
    kind = "png" if small else "jpeg"
    return f'<img class="{kind}" src="{data_uri(image, kind)}" alt="{escape(alt)}">'


def buttons(pictures: Sequence[tuple[str, str, str]], label: str) -> str:
    """Pictures to choose from, for `PICK`. pictures: of each its HTML, what its button is called, and a line below; the
    first one is pressed."""
    found = "".join(
        f'<button type="button" data-index="{i}" aria-pressed="{"false" if i else "true"}" aria-label="{escape(name)}" '
        f'title="{escape(name)}">{html}'
        f"{f'<small>{line}</small>' if line else ''}</button>"
        for i, (html, name, line) in enumerate(pictures)
    )
    return f'<div class="choices" role="group" aria-label="{escape(label)}">{found}</div>'
