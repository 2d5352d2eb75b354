"""Search: the gallery's images that fit a sentence, and the sentences that fit an image, by both models."""

import json
from collections.abc import Callable
from html import escape
from typing import TypedDict

import gradio as gr
from torch import Tensor

from dlip.common.errors import MissingAbility, UserError
from dlip.vlm import VLM

from .. import events, gallery, images, inputs, models
from ..view import parts

CANDIDATES, SHOWN = 16, 5
"""Candidates by ITC that are ranked again with ITM; results shown."""


class Hit(TypedDict):
    place: int
    """Index of the image in the gallery; 0 to 199 of the shipped one are the first of the scenes' test split."""
    caption: str
    """The image's first caption; empty if it has none."""
    itc: float
    """Cosine similarity, -1 to 1."""
    itm: float | None
    """Probability from 0 to 1 that image and sentence match; None for a model without matching."""
    itc_rank: int
    """Rank by ITC alone, from 1."""


class Hits(TypedDict):
    hits: list[Hit]
    """The best candidates by the sum of ITC's logit and ITM's log-odds; without matching, by ITC."""
    searched: int
    """Number of images, or captions, that were searched."""
    note: str
    """Why there are none, or how much of a long sentence was read."""


class SearchResults(TypedDict):
    teacher: Hits
    student: Hits


@inputs.checked
def search(teacher: str, student: str, sentence: str) -> SearchResults:
    """The gallery's images that fit a sentence best: ITC chooses 16, which both ITC and ITM rank; the top five."""
    sentence, searched = inputs.text(sentence, "sentence"), gallery.current()
    return _both(
        teacher, student, "images", lambda vlm: vlm.embed_texts([sentence]),
        searched.image, lambda vlm, candidates: vlm.match(candidates, [sentence] * len(candidates)), sentence,
    )  # fmt: skip


@inputs.checked
def sentences(image: str, teacher: str, student: str) -> SearchResults:
    """The reverse: the gallery's first captions that fit an image best, chosen and ranked in the same way."""
    loaded, searched = images.read(image), gallery.current()
    if not searched.has_captions:
        raise UserError("the images of this gallery have no captions to choose from; search them by a sentence")
    return _both(
        teacher, student, "captions", lambda vlm: vlm.embed_images([loaded]),
        searched.caption, lambda vlm, candidates: vlm.match([loaded] * len(candidates), candidates),
    )  # fmt: skip


def _both(
    teacher: str,
    student: str,
    kind: gallery.Kind,
    embed: Callable[[VLM], Tensor],
    read: Callable[[int], object],
    match: Callable[[VLM, list], Tensor],
    sentence: str = "",
) -> SearchResults:
    """Hits of both models among the gallery's images or captions (`kind`), which `read` opens by their places."""
    results, searched = {}, gallery.current()
    for side, vlm in models.pair(teacher, student).items():
        try:
            places, embeddings = searched.places(vlm, kind), searched.embeddings(vlm, kind)
            with models.turn:
                itc, best = (embed(vlm)[0] @ embeddings.T).topk(min(CANDIDATES, len(places)))
                best = [places[i] for i in best]
                note = parts.reading_note(vlm, vlm.med.model_for("itc"), "the sentence", [sentence])
            itm, scores = [None] * len(best), itc
            if "itm" in vlm.med.abilities:
                candidates = [read(place) for place in best]  # others take their turn meanwhile
                with models.turn:
                    matching = match(vlm, candidates).cpu()
                    scores = itc.cpu() / vlm.med.model_for("itc").temp.item() + matching.logit(eps=1e-6)
                itm = matching.tolist()
            order = scores.argsort(descending=True, stable=True)[:SHOWN].tolist()
            hits = [
                Hit(place=best[i], caption=searched.caption(best[i]), itc=itc[i].item(), itm=itm[i], itc_rank=i + 1)
                for i in order
            ]
            results[side] = Hits(hits=hits, searched=len(places), note=note)
        except MissingAbility as unable:
            results[side] = Hits(hits=[], searched=0, note=str(unable))
    return results


# --- as the page shows it ---------------------------------------------------------------------------------------------


def introduction() -> str:
    """What the tab does, in the place of results."""
    searched = gallery.current()
    reverse = "Or the other way round, from the image to sentences." if searched.has_captions else ""
    return parts.hint(escape(
        f"Both models find the images that fit the sentence best: contrast (ITC) chooses {CANDIDATES} candidates; "
        "where a model has matching (ITM), the sum of ITC's logit and ITM's log-odds ranks them again. "
        f"Click one to make it your image. {reverse} "
        f"{searched.note}"
    ))  # fmt: skip


def show(results: SearchResults, names: tuple[str, str], with_images: bool) -> str:
    """Both models' hits side by side; a hit of both is marked."""
    places = [{hit["place"] for hit in results[side]["hits"]} for side in parts.SIDES]
    shared, searched = places[0] & places[1], max(results[side]["searched"] for side in parts.SIDES)
    if len(shared) == searched:
        orders = [[hit["place"] for hit in results[side]["hits"]] for side in parts.SIDES]
        equal = "the same order" if orders[0] == orders[1] else "another order"
        shared, summary = set(), f"All {searched} are shown, by the student in {equal}."
    else:
        summary = f"{len(shared) or 'None'} of the {len(places[0])} {'is' if len(shared) == 1 else 'are'} found by both"
        summary += ", and marked." if shared else "."
    thumbnails = {}
    if with_images:
        thumbnails = {place: gallery.current().entries[place].thumbnail for place in places[0] | places[1]}
    return parts.pair("search.html", names, [results[side] for side in parts.SIDES], summary if all(places) else "",
                      shared=shared, thumbnails=thumbnails)  # fmt: skip


def tab(
    page: gr.Blocks, names: tuple[gr.Dropdown, gr.Dropdown], image: gr.Image
) -> tuple[gr.Textbox, gr.events.Dependency]:
    """Return the sentence, which an example fills in if it selects other models, and the choice of a found image."""
    searched, empty = gallery.current(), introduction()
    with gr.Row(elem_classes="ask"):
        sentence = gr.Textbox(images.examples()[0].captions[0], label="Sentence", scale=3,
                              min_width=240, max_lines=1, elem_id="sentence")  # fmt: skip
        find = gr.Button("Find images", variant="primary", scale=1, min_width=130, elem_id="find")
        reverse = gr.Button("Sentences for my image", scale=1, min_width=250, elem_id="reverse",
                            visible=searched.has_captions)  # fmt: skip
    out, place = gr.HTML(empty, js_on_load=parts.ON_PICK, elem_id="found"), gr.JSON(visible=False)
    events.endpoint(search, [*names, sentence], events.SEARCH)
    events.endpoint(sentences, [image, *names], events.SEARCH)

    def find_images(teacher, student, sentence):
        return show(search(teacher, student, sentence), (teacher, student), with_images=True)

    def find_sentences(image, teacher, student):
        return show(sentences(image, teacher, student), (teacher, student), with_images=False)

    event = dict(show_progress="minimal", **events.SEARCH)
    finding = gr.on(
        [find.click, sentence.submit], events.guarded(find_images, long=True), [*names, sentence], out, **event
    )
    reversing = reverse.click(events.guarded(find_sentences, long=True), [image, *names], out, **event)
    clear = dict(outputs=out, trigger_mode="multiple")
    gr.on([name.change for name in names], None, js=events.set_in_page(empty), cancels=[finding, reversing],
          **clear)  # fmt: skip
    images_stay = f"shown => shown.includes('data-index') ? {json.dumps(gr.skip())} : {json.dumps(empty)}"
    image.change(None, out, js=images_stay, cancels=reversing, **clear)
    clicked = out.click(None, None, place, js=parts.picked("found"))
    read = events.guarded(searched.image, long=True)
    chosen = clicked.then(read, place, image, **events.CHOICE)
    chosen.then(None, js=parts.RELEASE_EXAMPLES).then(None, js=parts.SHOW_IMAGE)
    return sentence, chosen
