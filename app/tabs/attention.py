"""Attention: both models' maps of a word, or of the whole image, side by side."""

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Literal, TypedDict

import gradio as gr
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, StringConstraints
from torch import Tensor

from dlip.common.errors import MissingAbility, UserError
from dlip.data.answers import ARTICLES
from dlip.data.scenes.truth import parse_caption
from dlip.evaluation.attention_maps import WordMaps, answer_maps, image_maps, word_maps
from dlip.vlm import VLM

from .. import images, models
from ..endpoints import LONG, PAGE, QUICK, Text, answered, api, checked, hint_of, run_job
from ..view import attention_view, parts
from . import attributions
from .compare import DEFAULTS

CROSS, SELF, ROLLOUT = "cross-attention", "self-attention", "rollout"
VIEWS = (CROSS, SELF, ROLLOUT, *attributions.METHODS)
SOURCES = {"as the decoder writes it": "decoder", "as it is read with the image": "fusion"}
EMPTY = "Upload an image, or choose an example: its captions appear here; click a word."
NO_CAPTIONS = "Neither model can write captions: type a question, to see its words and the answers’."


Place = Annotated[str, BeforeValidator(str), StringConstraints(pattern=r"^(last|mean|[0-9]{1,3})$")]
"""Annotation of a parameter: a layer or a head."""


class Line(TypedDict):
    """A text whose words can be clicked."""

    who: str
    """teacher, student, or you."""
    kind: str
    """caption, question or answer."""
    text: str
    question: str
    """The question of an answer; else empty."""
    read: int
    """Number of words that all models read: long texts are truncated."""


@checked
def words(image: images.Upload, teacher: Text, student: Text, question: Text = "") -> list[Line]:
    """Both models' captions of an image and, with a question, the question and both answers.

    Captions are those of the Compare tab's default settings. A model that cannot caption or answer is skipped.
    """
    pair = models.pair(teacher, student)
    texts = [(who, "caption", text, "") for who, text in _capable(pair, VLM.caption, [image], *DEFAULTS.values())]
    if question:
        texts.append(("you", "question", question, ""))
        texts += [(who, "answer", text, question) for who, text in _capable(pair, VLM.answer, [image], [question])]
    members = [(vlm, med) for vlm in pair.values() for med in vlm.med.members]
    readers = [(vlm, med) for vlm, med in members if med.abilities - {"itc"}] or members
    return [
        Line(who=who, kind=kind, text=text, question=about, read=min(vlm.words_read(text, med) for vlm, med in readers))
        for who, kind, text, about in texts
    ]


@checked
def attention(
    image: images.Upload,
    teacher: Text,
    student: Text,
    text: Text,
    word: Annotated[int, Field(ge=0)],
    source: Literal["decoder", "fusion", "answer"] = "decoder",
    question: Text = "",
    teacher_layer: Place = "last",
    teacher_head: Place = "mean",
    student_layer: Place = "last",
    student_head: Place = "mean",
) -> attention_view.Maps:
    """Both models' cross-attention over the image for a word of a text, and how far the two maps differ.

    word: index in the text's words, from 0. source: "decoder" for a caption as it is written, "fusion" for a caption
    or a question as it is read, "answer" for an answer to `question`. Layers: "last", "mean", or an index from 0;
    heads: "mean", or an index from 0. On a scene of the page's gallery, a word that names one object is scored against
    the object's mask.
    """
    pair = models.pair(teacher, student)
    if source == "answer" and not question:
        raise UserError("the question is empty; type one")
    about = attention_view.word_at(word, text)
    places = {"teacher": _place(teacher_layer, teacher_head), "student": _place(student_layer, student_head)}

    def maps_of(vlm: VLM) -> WordMaps:
        if source == "answer":
            return answer_maps(vlm, image, question, text)
        return word_maps(vlm, image, text, source)

    def word_map(side: str, vlm: VLM) -> Tensor:
        return maps_of(vlm).map(word, *places[side])

    maps, scene = attention_view.for_each_model(pair, word_map), attention_view.scene_of(image)
    named = None if source == "answer" else attention_view.named_object(word, text, scene)
    return attention_view.compare_maps(about, CROSS, models.names(pair), maps, scene, named)


@checked
def self_attention(
    image: images.Upload,
    teacher: Text,
    student: Text,
    rollout: bool = False,
    teacher_layer: Place = "last",
    teacher_head: Place = "mean",
    student_layer: Place = "last",
    student_head: Place = "mean",
) -> attention_view.Maps:
    """Attention of both image encoders' [CLS] to the image's patches: of one layer, or rolled out through all.

    Layers: "last", "mean", or an index from 0; heads: "mean", or an index from 0.
    """
    pair = models.pair(teacher, student)
    chosen = {"teacher": _place(teacher_layer, teacher_head), "student": _place(student_layer, student_head)}

    def image_map(side: str, vlm: VLM) -> Tensor:
        maps = image_maps(vlm, image)
        grid = maps.rollout() if rollout else maps.cls(*chosen[side])  # [g, g]
        return F.pad(grid.flatten(), (1, 0))

    maps = attention_view.for_each_model(pair, image_map)
    return attention_view.compare_maps("the image", ROLLOUT if rollout else SELF, models.names(pair), maps)


def _capable(pair: dict[str, VLM], method: Callable, *arguments) -> list[tuple[str, str]]:
    """Side and text of each model that has the weights for a method."""
    texts = []
    for side, vlm in pair.items():
        with suppress(MissingAbility):
            texts.append((side, method(vlm, *arguments)[0]))
    return texts


def _place(layer: str, head: str) -> tuple[int | None, int | None]:
    """Layer and head as `WordMaps.map` takes them."""
    names = {"last": -1, "mean": None}
    return tuple(names[value] if value in names else int(value) for value in (layer, head))


def layers_and_heads(name: str, view: str) -> tuple[list[str], list[str]]:
    """Layers and heads of a model to choose from. Raises UserError as `models.load`."""
    c = models.load(name).med.config
    layers, heads = (c.fusion_layers, c.text_heads) if view == CROSS else (range(c.image_layers), c.image_heads)
    return ["last", "mean", *map(str, layers)], ["mean", *map(str, range(heads))]


def first_word(texts: list[Line]) -> dict | None:
    """The first word that names an object of a scene, or is no article: {"text": index in `texts`, "word": index}."""
    for i, text in enumerate(texts):
        if named := parse_caption(text["text"]).mentions:
            return {"text": i, "word": named[0].end - 1}
    words = [(i, k, word) for i, text in enumerate(texts) for k, word in enumerate(text["text"].split())]
    return next(({"text": i, "word": k} for i, k, word in words if word.lower() not in ARTICLES), None)


def show(texts: list[Line], chosen: dict | None) -> str:
    """The texts, with a button for each word that both models read; the chosen one is pressed."""
    return parts.render("words.html", texts=texts, chosen=chosen)


def tab(image: gr.Image, names: tuple[gr.Dropdown, gr.Dropdown], subject: gr.Textbox) -> None:
    with gr.Row(elem_classes="ask"):
        hint = "to see its words, and those of both answers"
        question = gr.Textbox("", label="Question", scale=4, max_lines=1, placeholder=hint)
        answer = parts.action("Answer", "describe")
    texts, chosen = gr.JSON(visible=False), gr.JSON(visible=False)
    opened = gr.Checkbox(visible=False)
    shown_words = gr.HTML(parts.hint(EMPTY), js_on_load=parts.ON_PICK, elem_id="words")
    view = gr.Radio(VIEWS, value=CROSS, label="What to look at", container=False, elem_id="view", elem_classes="pills")
    with gr.Row(visible=False, elem_classes="act") as explain_row:
        explain, stop = parts.job_buttons("Explain", "explain", "stop-explaining")
    shown_maps = gr.HTML(elem_id="attention-maps")
    with gr.Accordion("Layers, heads, and how captions are read", open=False):
        source = gr.Radio(list(SOURCES), value=next(iter(SOURCES)), label="Words of captions")
        with gr.Row():
            places = []
            for side, name in zip(parts.SIDES, models.defaults(), strict=True):
                for noun, options in zip(("layer", "head"), layers_and_heads(name, CROSS), strict=True):
                    label = f"{parts.SIDES[side]}’s {noun}"
                    first = dict(value=options[0], label=label, min_width=130, allow_custom_value=True)
                    places.append(gr.Dropdown(options, **first))

    def find_words(image, teacher, student, question, opened):
        if not opened:
            return gr.skip(), gr.skip(), gr.skip()
        if not image:
            return [], None, parts.hint(EMPTY)
        texts = words(image, teacher, student, question)
        first = first_word(texts)
        return texts, first, show(texts, first) if texts else parts.hint(NO_CAPTIONS)

    def find_maps(image, teacher, student, texts, chosen, view, source, *places):
        if not image or (not chosen and view not in (SELF, ROLLOUT)):
            return ""
        if view in attributions.METHODS:
            return attributions.HINT
        image = images.read(image)
        if view == CROSS:
            text = texts[chosen["text"]]
            how = {"caption": SOURCES[source], "question": "fusion", "answer": "answer"}[text["kind"]]
            maps = attention(image, teacher, student, text["text"], chosen["word"], how, text["question"], *places)
        else:
            maps = self_attention(image, teacher, student, view == ROLLOUT, *places)
        return attention_view.show(maps, image)

    def update_settings(teacher, student, view):
        options = [some for name in (teacher, student) for some in layers_and_heads(name, view)]
        dropdowns = (gr.Dropdown(some, value=some[0], interactive=view in (CROSS, SELF)) for some in options)
        return gr.Row(visible=view in attributions.METHODS), gr.Radio(interactive=view == CROSS), *dropdowns

    def explain_word(image, teacher, student, texts, chosen, method, progress):
        if not texts or not chosen:
            raise UserError("there is no word to explain; upload an image, and choose one of its words")
        text, image = texts[chosen["text"]], images.read(image)
        word = chosen["word"] if text["kind"] == "caption" else None
        maps = attributions.attribution(image, teacher, student, text["text"], word, method, progress)
        return attention_view.show(maps, image)

    shown_words.parent.select(None, None, opened, js=parts.set_in_page(True))
    asked, settings = [image, *names], [explain_row, source, *places]
    no_settings, no_words = (gr.skip(),) * len(settings), ([], None)
    handlers = {
        "settings": (answered(update_settings, lambda _: no_settings), [*names, view], settings),
        "words": (
            answered(find_words, lambda error: (*no_words, hint_of(error))),
            [*asked, question, opened],
            [texts, chosen, shown_words],
        ),
        "maps": (answered(find_maps), [*asked, texts, chosen, view, source, *places], shown_maps),
    }
    clicked = shown_words.click(None, None, chosen, js=parts.picked("words"))
    steps = {
        ("settings", "words", "maps"): [subject.change],
        ("words", "maps"): [opened.change, answer.click, question.submit],
        ("settings", "maps"): [view.change],
        ("maps",): [setting.input for setting in (source, *places)],
    }
    for (first, *rest), triggers in steps.items():
        event = gr.on(triggers, *handlers[first], show_progress="hidden", **QUICK, **PAGE)
        for name in rest:
            event = event.then(*handlers[name], show_progress="minimal", **QUICK, **PAGE)
    clicked.then(*handlers["maps"], show_progress="minimal", **QUICK, **PAGE)
    word = [*asked, texts, chosen, view]
    run_job(explain, stop, explain_word, hint_of, word, [shown_maps], "Explaining", shown_maps)
    for function, queue in (
        (words, QUICK),
        (attention, QUICK),
        (self_attention, QUICK),
        (attributions.attribution, LONG),
    ):
        api(function, queue)
