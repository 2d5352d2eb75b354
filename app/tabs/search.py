"""Search: the gallery's images that fit a sentence, and the sentences that fit an image, by both models."""

import json
from collections.abc import Callable
from functools import cache
from typing import TypedDict
from weakref import WeakKeyDictionary

import gradio as gr
import torch
from torch import Tensor

from dlip.common.errors import MissingAbility
from dlip.vlm import VLM

from .. import events, images, inputs, models
from ..images import GALLERY
from ..view import parts

CANDIDATES, SHOWN, BATCH = 16, 5, 20
"""Candidates by ITC that ITM ranks again; results shown; images or sentences embedded at a time."""
EMPTY = (
    f"Both models find the {SHOWN} of {len(GALLERY)} test images that fit the sentence best: contrast (ITC) chooses "
    f"{CANDIDATES} candidates, matching (ITM) ranks them again; click one to make it your image. Or the other way "
    "round, from the image to sentences."
)


class Hit(TypedDict):
    place: int
    """Index of the image in the gallery, the first 200 images of the scenes' test split."""
    caption: str
    """The image's first caption."""
    itc: float
    """Cosine similarity, -1 to 1."""
    itm: float | None
    """Probability from 0 to 1 that image and sentence match; None for a model without matching."""
    itc_rank: int
    """Rank by ITC alone, from 1."""


class Hits(TypedDict):
    hits: list[Hit]
    """The candidates that ITM ranks highest; without matching, those of ITC."""
    note: str
    """Why there are none, or how much of a long sentence was read."""


class SearchResults(TypedDict):
    teacher: Hits
    student: Hits


@inputs.checked
def search(teacher: str, student: str, sentence: str) -> SearchResults:
    """The gallery's images that fit a sentence best: ITC chooses 16 of 200, ITM ranks them again; the top five."""
    sentence = inputs.text(sentence, "sentence")
    return _both(
        teacher, student, "images", lambda vlm: vlm.embed_texts([sentence]),
        lambda vlm, best: vlm.match([GALLERY[i].image for i in best], [sentence] * len(best)), sentence,
    )  # fmt: skip


@inputs.checked
def sentences(image: str, teacher: str, student: str) -> SearchResults:
    """The reverse: the gallery's first captions that fit an image best, chosen and ranked in the same way."""
    loaded = images.read(image)
    return _both(
        teacher, student, "captions", lambda vlm: vlm.embed_images([loaded]),
        lambda vlm, best: vlm.match([loaded] * len(best), [_captions()[i] for i in best]),
    )  # fmt: skip


def _both(teacher: str, student: str, kind: str, embed: Callable[[VLM], Tensor],
          match: Callable[[VLM, list[int]], Tensor], sentence: str = "") -> SearchResults:  # fmt: skip
    """Hits of both models among the gallery's images or captions (`kind`)."""
    results = {}
    for side, vlm in models.pair(teacher, student).items():
        try:
            gallery = _embeddings(vlm, kind)
            with models.turn:
                itc = embed(vlm)[0] @ gallery.T
                best = itc.topk(CANDIDATES).indices.tolist()
                itm = match(vlm, best).tolist() if "itm" in vlm.med.abilities else [None] * len(best)
                note = parts.truncation_note(vlm, "the sentence", [sentence])
            order = sorted(range(len(best)), key=lambda i: -(itm[i] or 0))[:SHOWN]  # equal ones in ITC's order
            hits = [
                Hit(place=place, caption=_captions()[place], itc=itc[place].item(), itm=itm[i], itc_rank=i + 1)
                for i, place in ((i, best[i]) for i in order)
            ]
            results[side] = Hits(hits=hits, note=note)
        except MissingAbility as unable:
            results[side] = Hits(hits=[], note=str(unable))
    return results


_cache: WeakKeyDictionary[VLM, dict[str, Tensor]] = WeakKeyDictionary()


@cache
def _captions() -> list[str]:
    return [GALLERY[i].captions[0] for i in range(len(GALLERY))]


def _embeddings(vlm: VLM, kind: str) -> Tensor:
    """ITC embeddings [200, E] of the gallery's images or captions, computed once per model, a batch at a time."""
    cached = _cache.setdefault(vlm, {})
    if kind not in cached:
        batches = []
        for start in range(0, len(GALLERY), BATCH):
            with models.turn:
                if kind == "images":
                    indices = range(start, min(start + BATCH, len(GALLERY)))
                    batches.append(vlm.embed_images([GALLERY[i].image for i in indices]))
                else:
                    batches.append(vlm.embed_texts(_captions()[start : start + BATCH]))
        cached[kind] = torch.cat(batches)
    return cached[kind]


# --- as the page shows it ---------------------------------------------------------------------------------------------


def show(results: SearchResults, names: tuple[str, str], with_images: bool) -> str:
    """Both models' hits side by side; a hit of both is marked."""
    places = [{hit["place"] for hit in results[side]["hits"]} for side in parts.SIDES]
    shared = places[0] & places[1]
    summary = f"Both found {len(shared)} of the same {SHOWN}; those are marked." if shared else "They share none."
    thumbnails = {}
    if with_images:
        thumbnails = {i: parts.thumbnail(GALLERY[i].image, _captions()[i]) for i in places[0] | places[1]}
    return parts.pair("search.html", names, [results[side] for side in parts.SIDES], summary if all(places) else "",
                      shared=shared, thumbnails=thumbnails)  # fmt: skip


def tab(page: gr.Blocks, names: tuple[gr.Dropdown, gr.Dropdown], image: gr.Image) -> None:
    with gr.Row(elem_classes="ask"):
        sentence = gr.Textbox(_captions()[35], label="Sentence", scale=3,
                              min_width=240, max_lines=1, elem_id="sentence")  # fmt: skip
        find = gr.Button("Find images", variant="primary", scale=1, min_width=130, elem_id="find")
        reverse = gr.Button("Sentences for my image", scale=1, min_width=250, elem_id="reverse")
    out, place = gr.HTML(parts.hint(EMPTY), js_on_load=parts.ON_PICK, elem_id="found"), gr.JSON(visible=False)
    events.endpoint(search, [*names, sentence], events.SEARCH)
    events.endpoint(sentences, [image, *names], events.SEARCH)

    def find_images(teacher, student, sentence):
        return show(search(teacher, student, sentence), (teacher, student), with_images=True)

    def find_sentences(image, teacher, student):
        return show(sentences(image, teacher, student), (teacher, student), with_images=False)

    event = dict(api_visibility="private", show_progress="minimal", **events.SEARCH)
    finding = gr.on(
        [find.click, sentence.submit], events.guarded(find_images, long=True), [*names, sentence], out, **event
    )
    reversing = reverse.click(events.guarded(find_sentences, long=True), [image, *names], out, **event)
    clear = dict(outputs=out, api_visibility="private", trigger_mode="multiple")
    gr.on([name.change for name in names], None, js=events.set_in_page(parts.hint(EMPTY)), cancels=[finding, reversing],
          **clear)  # fmt: skip
    images_stay = f"shown => shown.includes('data-index') ? shown : {json.dumps(parts.hint(EMPTY))}"
    image.change(None, out, js=images_stay, cancels=reversing, **clear)
    clicked = out.click(None, None, place, js=parts.picked("found"), api_visibility="private")
    chosen = clicked.then(lambda place: GALLERY[place].image, place, image, api_visibility="private", **events.CHOICE)
    chosen.then(None, js=parts.RELEASE_EXAMPLES).then(None, js=parts.SHOW_IMAGE)
