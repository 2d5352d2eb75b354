"""Search: the gallery's images that fit a sentence, and the sentences that fit an image, by both models."""

from collections.abc import Callable
from html import escape
from typing import TypedDict

import gradio as gr
from torch import Tensor

from dlip.common.errors import MissingAbility, UserError
from dlip.vlm import VLM

from .. import gallery, images, models
from ..endpoints import SEARCH, Text, Words, checked, offer
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
    of: gallery.Kind
    teacher: Hits
    student: Hits


@checked
def search(teacher: Text, student: Text, sentence: Words) -> SearchResults:
    """The gallery's images that fit a sentence best: ITC chooses 16, which both ITC and ITM rank; the top five."""

    def embed(vlm: VLM) -> Tensor:
        return vlm.embed_texts([sentence])

    def match(vlm: VLM, candidates: list) -> Tensor:
        return vlm.match(candidates, [sentence] * len(candidates))

    return _both(teacher, student, "images", embed, gallery.current().image, match, sentence)


@checked
def sentences(image: images.Upload, teacher: Text, student: Text) -> SearchResults:
    """The reverse: the gallery's first captions that fit an image best, chosen and ranked in the same way."""
    searched = gallery.current()
    if not searched.has_captions:
        raise UserError("the images of this gallery have no captions to choose from; search them by a sentence")

    def embed(vlm: VLM) -> Tensor:
        return vlm.embed_images([image])

    def match(vlm: VLM, candidates: list) -> Tensor:
        return vlm.match([image] * len(candidates), candidates)

    return _both(teacher, student, "captions", embed, searched.caption, match)


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
    results, searched = {"of": kind}, gallery.current()
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


def introduction() -> str:
    """What the tab does, in the place of results."""
    searched = gallery.current()
    reverse = "Or the other way round, from the image to sentences." if searched.has_captions else ""
    text = (
        f"Both models find the images that fit the sentence best: contrast (ITC) chooses {CANDIDATES} candidates; "
        "where a model has matching (ITM), the sum of ITC's logit and ITM's log-odds ranks them again. "
        f"Click one to make it your image. {reverse} {searched.note}"
    )
    return parts.hint(escape(text))


def show(results: SearchResults, names: tuple[str, str]) -> str:
    """Both models' hits side by side; a hit of both is marked. Images are shown where a sentence searched them."""
    sides = [results[side] for side in parts.SIDES]
    places = [{hit["place"] for hit in side["hits"]} for side in sides]
    shared, searched = places[0] & places[1], max(side["searched"] for side in sides)
    if len(shared) == searched:
        shared, summary = set(), f"All {searched} are shown."
    else:
        summary = f"{len(shared) or 'None'} of the {len(places[0])} {'is' if len(shared) == 1 else 'are'} found by both"
        summary += ", and marked." if shared else "."
    entries = gallery.current().entries
    thumbnails = {place: entries[place].thumbnail for place in places[0] | places[1] if results["of"] == "images"}
    return parts.pair("search.html", names, sides, summary if all(places) else "", shared=shared, thumbnails=thumbnails)


def tab(
    image: gr.Image, names: tuple[gr.Dropdown, gr.Dropdown], subject: gr.Textbox
) -> tuple[gr.Textbox, gr.HTML, gr.JSON]:
    """Return the sentence, which an example fills in, the hits, and the place of the one that was clicked."""
    empty = introduction()
    with gr.Row(elem_classes="ask"):
        first = images.examples()[0].captions[0]
        sentence = gr.Textbox(first, label="Sentence", scale=3, min_width=240, max_lines=1, elem_id="sentence")
        find = parts.action("Find images", "find", 130)
        label, visible = "Sentences for my image", gallery.current().has_captions
        reverse = gr.Button(label, scale=1, min_width=250, elem_id="reverse", visible=visible)
    out, place = gr.HTML(empty, js_on_load=parts.ON_PICK, elem_id="found"), gr.JSON(visible=False)
    offer(search, show, [find.click, sentence.submit], [*names, sentence], out, SEARCH)
    offer(sentences, show, [reverse.click], [image, *names], out, SEARCH)
    gr.on([name.change for name in names], None, None, out, js=parts.set_in_page(empty))
    return sentence, out, place
