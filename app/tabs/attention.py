"""Attention: both models' maps of a word, or of the picture alone, side by side over the picture."""

from collections.abc import Callable
from contextlib import suppress
from html import escape
from typing import TypedDict

import gradio as gr
import torch.nn.functional as F
from torch import Tensor

from dlip.common.errors import MissingAbility, UserError
from dlip.data.scenes.truth import mentions
from dlip.evaluation.attention_maps import ImageMaps, WordMaps, answer_maps, image_maps, word_maps
from dlip.vlm import VLM

from .. import events, images, inputs, jobs, models
from ..view import attention_view, parts
from . import attributions
from .compare import USUAL

CROSS, OWN, ROLLED = "cross-attention", "self-attention", "rollout"
VIEWS = (CROSS, OWN, ROLLED, *attributions.METHODS)
SOURCES = {"as the caption is said": "decoder", "as it is read with the picture": "fusion"}
EMPTY = "Drop a picture in, or choose an example: its captions appear here, each word to be clicked."
SPEECHLESS = "Neither model can write captions: type a question, to look at its words and its answers’."


class Text(TypedDict):
    """A text whose words can be looked at."""

    who: str
    """teacher, student, or you."""
    kind: str
    """caption, question or answer."""
    text: str
    question: str
    """What an answer answers; empty for others."""
    read: int
    """How many of its words a model reads, and can be looked at: long texts are cut."""


# --- what is done -----------------------------------------------------------------------------------------------------


@inputs.checked
def words(picture: str, teacher: str, student: str, question: str = "") -> list[Text]:
    """Both models' captions of a picture, found as Compare finds them at first, and, where there is a question, the
    question and both answers to it.

    A model whose checkpoint cannot caption or answer is left out.
    """
    image, pair = images.read(picture), models.pair(teacher, student)
    question = inputs.text(question, "question", optional=True)
    said = [(who, "caption", text, "") for who, text in _able(pair, VLM.caption, [image], *USUAL.values())]
    if question:
        said.append(("you", "question", question, ""))
        said += [(who, "answer", text, question) for who, text in _able(pair, VLM.answer, [image], [question])]
    read = [max(vlm.words_read(text) for vlm in pair.values()) for _, _, text, _ in said]
    return [
        Text(who=who, kind=kind, text=text, question=asked, read=words)
        for (who, kind, text, asked), words in zip(said, read, strict=True)
    ]


@inputs.checked
def attention(
    picture: str,
    teacher: str,
    student: str,
    text: str,
    word: int,
    source: str = "decoder",
    question: str = "",
    teacher_layer: str = "last",
    teacher_head: str = "mean",
    student_layer: str = "last",
    student_head: str = "mean",
) -> attention_view.Look:
    """Both models' cross-attention over the picture of a word of one text, and how far the two maps differ.

    word: its place in the text's words, from 0. source: "decoder" for a caption as it is said, "fusion" for a caption
    or a question as it is read, "answer" for an answer to `question`. Layers: "last", "mean", or counted from 0; heads:
    "mean", or counted from 0. On a scene of the page's gallery, examples among them, a word that names an object,
    and no other, is scored against its mask.
    """
    image, pair = images.read(picture), models.pair(teacher, student)
    text, word = inputs.text(text, "text", optional=True), inputs.whole(word, "word", 0, inputs.LONGEST)
    question = inputs.text(question, "question", optional=source != "answer")
    about = attention_view.spoken(word, text)
    places = {"teacher": _place(teacher_layer, teacher_head), "student": _place(student_layer, student_head)}
    maps = attention_view.of_each(
        pair, lambda who, vlm: _words(vlm, image, text, source, question).map(word, *places[who])
    )
    scene = attention_view.scene_of(image)
    thing = None if source == "answer" else attention_view.thing_of(word, text, scene)
    return attention_view.compare(about, CROSS, models.names(pair), maps, scene, thing)


@inputs.checked
def self_attention(
    picture: str,
    teacher: str,
    student: str,
    rollout: bool = False,
    teacher_layer: str = "last",
    teacher_head: str = "mean",
    student_layer: str = "last",
    student_head: str = "mean",
) -> attention_view.Look:
    """What [CLS] of both image encoders gives to the picture's patches: in one layer, or rolled out through all.

    Layers: "last", "mean", or counted from 0; heads: "mean", or counted from 0.
    """
    image, pair = images.read(picture), models.pair(teacher, student)
    chosen = {"teacher": (teacher_layer, teacher_head), "student": (student_layer, student_head)}
    maps = {who: _image(image_maps(vlm, image), rollout, *chosen[who]) for who, vlm in pair.items()}
    return attention_view.compare("the picture", ROLLED if rollout else OWN, models.names(pair), maps, None, None)


def _able(pair: dict[str, VLM], method: Callable, *inputs) -> list[tuple[str, str]]:
    """What each model says that has weights for it."""
    said = []
    for who, vlm in pair.items():
        with suppress(MissingAbility):
            said.append((who, method(vlm, *inputs)[0]))
    return said


def _words(vlm: VLM, image, text: str, source: str, question: str) -> WordMaps:
    if source == "answer":
        return answer_maps(vlm, image, question, text)
    if source not in SOURCES.values():
        raise UserError(f"there is no source {source!r}; choose decoder, fusion or answer")
    return word_maps(vlm, image, text, source)


def _image(maps: ImageMaps, rollout: bool, layer: str, head: str) -> Tensor:
    over = maps.rollout() if rollout else maps.cls(*_place(layer, head))  # [g, g]
    return F.pad(over.flatten(), (1, 0))


def _place(layer: str, head: str) -> tuple[int | None, int | None]:
    """As `WordMaps.map` takes them."""
    places = []
    for noun, said, known in (("layer", layer, {"last": -1, "mean": None}), ("head", head, {"mean": None})):
        place = known[said] if said in known else inputs.counted(said)
        if said not in known and not isinstance(place, int):
            raise UserError(f"there is no {noun} {said!r:.40}; choose {', '.join(known)} or a number from 0")
        places.append(place)
    return places[0], places[1]


def depth(name: str, view: str) -> tuple[list[str], list[str]]:
    """Layers and heads that can be chosen of a model. Raises UserError as `models.load`."""
    c = models.load(name).med.config
    layers, heads = (c.fusion_layers, c.text_heads) if view == CROSS else (range(c.image_layers), c.image_heads)
    return ["last", "mean", *map(str, layers)], ["mean", *map(str, range(heads))]


def first(texts: list[Text]) -> dict | None:
    """The first word that names a thing, or the first one: {"text": place in `texts`, "word"}."""
    for i, text in enumerate(texts):
        if found := mentions(text["text"]):
            return {"text": i, "word": found[0].end - 1}
    return next(({"text": i, "word": 0} for i, text in enumerate(texts) if text["text"].split()), None)


def place_of(index: int, texts: list[Text]) -> dict:
    """Which word the button `index` of `show` is."""
    for i, text in enumerate(texts):
        if index < (count := len(text["text"].split())):
            return {"text": i, "word": index}
        index -= count
    raise UserError("this word is no longer there; choose another")


def show(texts: list[Text], chosen: dict | None) -> str:
    """The texts, each word that a model reads a button, the chosen one pressed."""
    rows, index = [], 0
    for i, text in enumerate(texts):
        buttons = []
        for j, word in enumerate(text["text"].split()):
            pressed = "true" if chosen == {"text": i, "word": j} else "false"
            buttons.append(
                f'<button type="button" data-index="{index}" aria-pressed="{pressed}">{escape(word)}</button>'
                if j < text["read"]
                else f'<span title="not read: the text is too long">{escape(word)}</span>'
            )
            index += 1
        who = {"you": "Your question"}.get(text["who"], f"{text['who'].capitalize()}’s {text['kind']}")
        said = " ".join(buttons) or "<i>nothing</i>"
        rows.append(f'<div class="{text["who"]}" role="group" aria-label="{who}"><b>{who}</b><p>{said}</p></div>')
    return f'<div class="words">{"".join(rows)}</div>'


# --- the tab ----------------------------------------------------------------------------------------------------------


def tab(names: tuple[gr.Dropdown, gr.Dropdown], picture: gr.Image) -> None:
    with gr.Row(elem_classes="ask"):
        asking = "to look at its words and its answers’, as: what color is the circle?"
        question = gr.Textbox("", label="Question", scale=4, max_lines=1, placeholder=asking)
        describe = gr.Button("Answer", variant="primary", scale=1, min_width=110, elem_id="describe")
    texts, chosen, found, place = (gr.JSON(visible=False) for _ in range(4))
    opened = gr.Checkbox(visible=False)
    spoken = gr.HTML(parts.hint(EMPTY), js_on_load=parts.PICK, elem_id="words")
    view = gr.Radio(VIEWS, value=CROSS, label="What to look at", container=False, elem_id="view", elem_classes="pills")
    with gr.Row(visible=False, elem_classes="act") as demand:
        explain = gr.Button("Explain", variant="primary", elem_id="explain", scale=0, min_width=160)
        cancel = jobs.stop_button("stop-explaining")
    shown = gr.HTML(elem_id="look")
    with gr.Accordion("Layers, heads, and how captions are taken", open=False):
        source = gr.Radio(list(SOURCES), value=next(iter(SOURCES)), label="Words of captions")
        outline = gr.Checkbox(True, label="Outline the object that the word names (on scenes)")
        with gr.Row():
            places = []
            for who, name in zip(parts.SIDES, models.first(), strict=True):
                for noun, some in zip(("layer", "head"), depth(name, CROSS), strict=True):
                    label = f"{parts.SIDES[who]}’s {noun}"
                    places.append(gr.Dropdown(some, value=some[0], label=label, min_width=130, allow_custom_value=True))

    def spell(picture, teacher, student, question, opened):
        if not opened:
            return gr.skip(), gr.skip(), gr.skip()
        if not picture:
            return [], None, parts.hint(EMPTY)
        said = words(picture, teacher, student, question)
        return said, first(said), show(said, first(said)) if said else parts.hint(SPEECHLESS)

    def look(picture, teacher, student, texts, chosen, view, source, outline, *places):
        if not picture or not texts:
            return None, ""
        if view in (OWN, ROLLED):
            seen = self_attention(picture, teacher, student, view == ROLLED, *places)
        elif view != CROSS or not chosen:
            return None, attributions.ASK
        else:
            text = texts[chosen["text"]]
            how = {"caption": SOURCES[source], "question": "fusion", "answer": "answer"}[text["kind"]]
            seen = attention(picture, teacher, student, text["text"], chosen["word"], how, text["question"], *places)
        return seen, attention_view.show(seen, picture, outline)

    def redraw(picture, found, outline):
        return attention_view.show(found, picture, outline) if picture and found else gr.skip()

    def turn(teacher, student, view):
        some = [of for name in (teacher, student) for of in depth(name, view)]
        deep, explains = view in (CROSS, OWN), view in attributions.METHODS
        fields = (gr.Dropdown(of, value=of[0], interactive=deep) for of in some)
        return gr.Row(visible=explains), gr.Radio(interactive=view == CROSS), *fields

    quick = dict(**events.QUICK, api_visibility="private", show_progress="minimal")
    asked, settings, seen = [picture, *names], [view, source, outline, *places], [found, shown]
    silent = events.following(spell, lambda said: ([], None, parts.hint(said)))
    said = dict(inputs=[*asked, question, opened], outputs=[texts, chosen, spoken], show_progress_on=spoken, **quick)
    turned = dict(fn=events.following(turn, lambda said: (gr.skip(),) * (2 + len(places))), inputs=[*names, view],
                  outputs=[demand, source, *places], **{**quick, "show_progress": "hidden"})  # fmt: skip
    see = dict(inputs=[*asked, texts, chosen, *settings], outputs=seen, show_progress_on=shown, **quick)
    follow, ask = events.following(look, lambda said: (None, parts.hint(said))), events.guarded(look)

    def followed(spelt) -> None:
        events.or_busy(events.or_busy(spelt, [spoken, shown]).then(follow, **see), [shown])

    here = spoken.parent  # nothing is worked out before the tab is looked at
    here.select(None, None, opened, js=events.at_once(True), api_visibility="private")
    followed(events.after([opened.change, picture.change])(silent, **said))
    for event in (describe.click, question.submit):
        event(events.guarded(spell), **said).then(follow, **see)
    renamed = events.after([name.change for name in names])(**turned)
    followed(events.or_busy(renamed, [spoken, shown]).then(silent, **said))
    events.after([view.change])(**turned).then(ask, **see)
    clicked = spoken.click(None, None, place, js=parts.picked("words"), api_visibility="private")
    clicked.then(events.guarded(place_of, long=True), [place, texts], chosen, queue=False, api_visibility="private",
                 **events.LATEST).then(ask, **see)  # fmt: skip
    for part in (source, *places):
        part.input(ask, **see)
    outline.input(events.guarded(redraw), [picture, found, outline], shown, **quick)
    attributions.events(asked, texts, chosen, view, outline, explain, cancel, seen)

    with gr.Row(visible=False):
        text, word = gr.Textbox(label="text"), gr.Number(0, precision=0, label="word")
        way = gr.Radio([*SOURCES.values(), "answer"], value="decoder", label="source")
        rolled = gr.Checkbox(label="rollout")
        method = gr.Radio(list(attributions.METHODS), value=attributions.METHODS[0], label="method")
    events.endpoint(words, [*asked, question])
    events.endpoint(attention, [*asked, text, word, way, question, *places])
    events.endpoint(self_attention, [*asked, rolled, *places])
    events.endpoint(attributions.attribution, [*asked, text, word, method], events.LONG)
