"""Attention: both models' maps of a word, or of the whole image, side by side."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypedDict

import gradio as gr
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dlip.common.errors import MissingAbility, UserError
from dlip.data.answers import ARTICLES
from dlip.data.scenes.truth import parse_caption
from dlip.evaluation.attention_maps import ImageMaps, WordMaps, answer_maps, image_maps, word_maps
from dlip.vlm import VLM

from .. import events, images, inputs, jobs, models
from ..view import attention_view, parts
from . import attributions
from .compare import DEFAULTS

CROSS, SELF, ROLLOUT = "cross-attention", "self-attention", "rollout"
VIEWS = (CROSS, SELF, ROLLOUT, *attributions.METHODS)
SOURCES = {"as the decoder writes it": "decoder", "as it is read with the image": "fusion"}
EMPTY = "Upload an image, or choose an example: its captions appear here; click a word."
ONE_LAYER = "Both image encoders have one layer, so rollout shows the same as self-attention."
NO_CAPTIONS = "Neither model can write captions: type a question, to see its words and the answers’."


class Text(TypedDict):
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


@inputs.checked
def words(image: str, teacher: str, student: str, question: str = "") -> list[Text]:
    """Both models' captions of an image and, with a question, the question and both answers.

    Captions are those of the Compare tab's default settings. A model that cannot caption or answer is skipped.
    """
    loaded, pair = images.read(image), models.pair(teacher, student)
    question = inputs.text(question, "question", optional=True)
    texts = [(who, "caption", text, "") for who, text in _capable(pair, VLM.caption, [loaded], *DEFAULTS.values())]
    if question:
        texts.append(("you", "question", question, ""))
        texts += [(who, "answer", text, question) for who, text in _capable(pair, VLM.answer, [loaded], [question])]
    members = [(vlm, med) for vlm in pair.values() for med in vlm.med.members]
    readers = [(vlm, med) for vlm, med in members if med.abilities - {"itc"}] or members
    return [
        Text(who=who, kind=kind, text=text, question=about, read=min(vlm.words_read(text, med) for vlm, med in readers))
        for who, kind, text, about in texts
    ]


@inputs.checked
def attention(
    image: str | Image.Image, teacher: str, student: str, text: str, word: int, source: str = "decoder",
    question: str = "", teacher_layer: str = "last", teacher_head: str = "mean", student_layer: str = "last",
    student_head: str = "mean",
) -> attention_view.Maps:  # fmt: skip
    """Both models' cross-attention over the image for a word of a text, and how far the two maps differ.

    word: index in the text's words, from 0. source: "decoder" for a caption as it is written, "fusion" for a caption
    or a question as it is read, "answer" for an answer to `question`. Layers: "last", "mean", or an index from 0;
    heads: "mean", or an index from 0. On a scene of the page's gallery, a word that names one object is scored against
    the object's mask.
    """
    loaded, pair = images.read(image), models.pair(teacher, student)
    text, word = inputs.text(text, "text", optional=True), inputs.integer(word, "word", 0, inputs.MAX_CHARACTERS)
    question = inputs.text(question, "question", optional=source != "answer")
    about = attention_view.word_at(word, text)
    places = {"teacher": _place(teacher_layer, teacher_head), "student": _place(student_layer, student_head)}

    def word_map(side: str, vlm: VLM) -> Tensor:
        return _word_maps(vlm, loaded, text, source, question).map(word, *places[side])

    maps, scene = attention_view.for_each_model(pair, word_map), attention_view.scene_of(loaded)
    named = None if source == "answer" else attention_view.named_object(word, text, scene)
    return attention_view.compare_maps(about, CROSS, models.names(pair), maps, scene, named)


@inputs.checked
def self_attention(
    image: str | Image.Image, teacher: str, student: str, rollout: bool = False, teacher_layer: str = "last",
    teacher_head: str = "mean", student_layer: str = "last", student_head: str = "mean",
) -> attention_view.Maps:  # fmt: skip
    """Attention of both image encoders' [CLS] to the image's patches: of one layer, or rolled out through all.

    Layers: "last", "mean", or an index from 0; heads: "mean", or an index from 0.
    """
    loaded, pair = images.read(image), models.pair(teacher, student)
    chosen = {"teacher": (teacher_layer, teacher_head), "student": (student_layer, student_head)}
    maps = attention_view.for_each_model(
        pair, lambda side, vlm: _image_map(image_maps(vlm, loaded), rollout, *chosen[side])
    )
    return attention_view.compare_maps("the image", ROLLOUT if rollout else SELF, models.names(pair), maps)


def _capable(pair: dict[str, VLM], method: Callable, *arguments) -> list[tuple[str, str]]:
    """Side and text of each model that has the weights for a method."""
    texts = []
    for side, vlm in pair.items():
        with suppress(MissingAbility):
            texts.append((side, method(vlm, *arguments)[0]))
    return texts


def _word_maps(vlm: VLM, image: Image.Image, text: str, source: str, question: str) -> WordMaps:
    if source == "answer":
        return answer_maps(vlm, image, question, text)
    if source not in SOURCES.values():
        raise UserError(f"there is no source {source!r}; choose decoder, fusion or answer")
    return word_maps(vlm, image, text, source)


def _image_map(maps: ImageMaps, rollout: bool, layer: str, head: str) -> Tensor:
    grid = maps.rollout() if rollout else maps.cls(*_place(layer, head))  # [g, g]
    return F.pad(grid.flatten(), (1, 0))


def _place(layer: str, head: str) -> tuple[int | None, int | None]:
    """Layer and head as `WordMaps.map` takes them."""
    indices = []
    for noun, value, names in (("layer", layer, {"last": -1, "mean": None}), ("head", head, {"mean": None})):
        index = names[value] if value in names else inputs.digits_as_int(value)
        if value not in names and not isinstance(index, int):
            raise UserError(f"there is no {noun} {value!r:.40}; choose {', '.join(names)} or a number from 0")
        indices.append(index)
    return indices[0], indices[1]


def layers_and_heads(name: str, view: str) -> tuple[list[str], list[str]]:
    """Layers and heads of a model to choose from. Raises UserError as `models.load`."""
    c = models.load(name).med.config
    layers, heads = (c.fusion_layers, c.text_heads) if view == CROSS else (range(c.image_layers), c.image_heads)
    return ["last", "mean", *map(str, layers)], ["mean", *map(str, range(heads))]


def first_word(texts: list[Text]) -> dict | None:
    """The first word that names an object of a scene, or is no article: {"text": index in `texts`, "word": index}."""
    for i, text in enumerate(texts):
        if named := parse_caption(text["text"]).mentions:
            return {"text": i, "word": named[0].end - 1}
    words = [(i, k, word) for i, text in enumerate(texts) for k, word in enumerate(text["text"].split())]
    return next(({"text": i, "word": k} for i, k, word in words if word.lower() not in ARTICLES), None)


def show(texts: list[Text], chosen: dict | None) -> str:
    """The texts, with a button for each word that both models read; the chosen one is pressed."""
    return parts.render("words.html", texts=texts, chosen=chosen)


# --- the tab ----------------------------------------------------------------------------------------------------------


def tab(page: gr.Blocks, names: tuple[gr.Dropdown, gr.Dropdown], image: gr.Image) -> None:
    with gr.Row(elem_classes="ask"):
        question = gr.Textbox(
            "", label="Question", scale=4, max_lines=1, placeholder="to see its words, and those of both answers"
        )
        answer = gr.Button("Answer", variant="primary", scale=1, min_width=110, elem_id="describe")
    texts, chosen, maps_json = (gr.JSON(visible=False) for _ in range(3))
    opened = gr.Checkbox(visible=False)
    shown_words = gr.HTML(parts.hint(EMPTY), js_on_load=parts.ON_PICK, elem_id="words")
    view = gr.Radio(VIEWS, value=CROSS, label="What to look at", container=False, elem_id="view", elem_classes="pills")
    with gr.Row(visible=False, elem_classes="act") as explain_row:
        explain = gr.Button("Explain", variant="primary", elem_id="explain", scale=0, min_width=160)
        stop = jobs.stop_button("stop-explaining")
    shown_maps = gr.HTML(elem_id="attention-maps")
    with gr.Accordion("Layers, heads, and how captions are read", open=False):
        source = gr.Radio(list(SOURCES), value=next(iter(SOURCES)), label="Words of captions")
        outline = gr.Checkbox(True, label="Outline the object that the word names (on scenes)")
        with gr.Row():
            places = []
            for side, name in zip(parts.SIDES, models.defaults(), strict=True):
                for noun, options in zip(("layer", "head"), layers_and_heads(name, CROSS), strict=True):
                    label = f"{parts.SIDES[side]}’s {noun}"
                    dropdown = gr.Dropdown(
                        options, value=options[0], label=label, min_width=130, allow_custom_value=True
                    )
                    places.append(dropdown)

    def find_words(image, teacher, student, question, opened):
        if not opened:
            return gr.skip(), gr.skip(), gr.skip()
        if not image:
            return [], None, parts.hint(EMPTY)
        texts = words(image, teacher, student, question)
        first = first_word(texts)
        return texts, first, show(texts, first) if texts else parts.hint(NO_CAPTIONS)

    def find_maps(image, teacher, student, texts, chosen, view, source, outline, *places):
        if not image or (not chosen and view not in (SELF, ROLLOUT)):
            return None, ""
        if view in attributions.METHODS:
            return None, attributions.HINT
        image = images.read(image)
        if view != CROSS:
            maps = self_attention(image, teacher, student, view == ROLLOUT, *places)
            if view == ROLLOUT and all(models.load(name).med.config.image_layers == 1 for name in (teacher, student)):
                return maps, f"{attention_view.show(maps, image)}{parts.hint(ONE_LAYER)}"
        else:
            text = texts[chosen["text"]]
            how = {"caption": SOURCES[source], "question": "fusion", "answer": "answer"}[text["kind"]]
            maps = attention(image, teacher, student, text["text"], chosen["word"], how, text["question"], *places)
        return maps, attention_view.show(maps, image, outline)

    def redraw(image, maps, outline):
        return attention_view.show(maps, images.read(image), outline) if image and maps else gr.skip()

    def update_settings(teacher, student, view):
        options = [some for name in (teacher, student) for some in layers_and_heads(name, view)]
        dropdowns = (gr.Dropdown(some, value=some[0], interactive=view in (CROSS, SELF)) for some in options)
        return gr.Row(visible=view in attributions.METHODS), gr.Radio(interactive=view == CROSS), *dropdowns

    def change_view(image, teacher, student, texts, chosen, view, source, outline):
        # in one request, which is sent before the one of a job that the visitor then starts
        maps = find_maps(image, teacher, student, texts, chosen, view, source, outline, *2 * ("last", "mean"))
        return *update_settings(teacher, student, view), *maps

    quick = dict(**events.QUICK, show_progress="minimal")
    models_and_image, settings, maps_out = [image, *names], [view, source, outline, *places], [maps_json, shown_maps]
    words_event = dict(inputs=[*models_and_image, question, opened], outputs=[texts, chosen, shown_words],
                       show_progress_on=shown_words, **quick)  # fmt: skip
    maps_event = dict(inputs=[*models_and_image, texts, chosen, *settings], outputs=maps_out,
                      show_progress_on=shown_maps, **quick)  # fmt: skip
    words_after_change = events.handled(find_words, lambda message: ([], None, parts.hint(message)))
    maps_after_change = events.handled(find_maps, lambda message: (None, parts.hint(message)))
    settings_out = [explain_row, source, *places]
    settings_event = dict(
        fn=events.handled(update_settings, lambda message: (gr.skip(),) * len(settings_out)),
        inputs=[*names, view], outputs=settings_out, **{**quick, "show_progress": "hidden"},
    )  # fmt: skip
    view_event = dict(inputs=[*models_and_image, texts, chosen, view, source, outline],
                      outputs=[*settings_out, *maps_out], show_progress_on=shown_maps, **quick)  # fmt: skip

    def then_maps(words_found) -> None:
        found_or_busy = events.or_busy(words_found, [shown_words, shown_maps])
        events.or_busy(found_or_busy.then(maps_after_change, **maps_event), [shown_maps])

    # nothing is computed before the tab is first opened
    shown_words.parent.select(None, None, opened, js=events.set_in_page(True))
    then_maps(events.chain([opened.change, image.change])(words_after_change, **words_event))
    for trigger in (answer.click, question.submit):
        trigger(events.guarded(find_words), **words_event).then(maps_after_change, **maps_event)
    new_models = events.chain([name.change for name in names])(**settings_event)
    then_maps(events.or_busy(new_models, [shown_words, shown_maps]).then(words_after_change, **words_event))
    events.chain([view.change])(events.guarded(change_view), **view_event)
    clicked = shown_words.click(None, None, chosen, js=parts.picked("words"))
    clicked.then(events.guarded(find_maps), **maps_event)
    for setting in (source, *places):
        setting.input(events.guarded(find_maps), **maps_event)
    outline.input(events.guarded(redraw), [image, maps_json, outline], shown_maps, **quick)
    attributions.add_events(models_and_image, texts, chosen, view, outline, explain, stop, maps_out,
                            [shown_words.click, answer.click, question.submit])  # fmt: skip

    with gr.Row(visible=False):
        text, word = gr.Textbox(label="text"), gr.Number(0, precision=0, label="word")
        text_source = gr.Radio([*SOURCES.values(), "answer"], value="decoder", label="source")
        rollout = gr.Checkbox(label="rollout")
        method = gr.Radio(list(attributions.METHODS), value=next(iter(attributions.METHODS)), label="method")
    events.endpoint(words, [*models_and_image, question])
    events.endpoint(attention, [*models_and_image, text, word, text_source, question, *places])
    events.endpoint(self_attention, [*models_and_image, rollout, *places])
    events.endpoint(attributions.attribution, [*models_and_image, text, word, method], events.LONG)
