"""Search: the pictures of a gallery that fit a sentence, and the sentences that fit a picture, by both models."""

import json
from html import escape
from typing import TypedDict
from weakref import WeakKeyDictionary

import gradio as gr
import torch
from torch import Tensor

from dlip.common.errors import MissingAbility
from dlip.vlm import VLM

from .. import images, inputs, models
from ..events import CHOICE, SEARCH, at_once, endpoint, guarded
from ..images import GALLERY
from ..view import parts

CANDIDATES, SHOWN, STEP = 16, 5, 20
"""Of ITC that ITM ranks anew; results that are shown; pictures or sentences that are read at a time."""
EMPTY = (
    f"Of {len(GALLERY)} test pictures both models find the {SHOWN} that fit the sentence best: contrast (ITC) chooses "
    f"{CANDIDATES}, matching (ITM) ranks them anew; one that is clicked becomes your picture. Or the other way round, "
    "from the picture to sentences."
)


class Hit(TypedDict):
    place: int
    """Of the picture in the gallery, which is the first 200 of the scenes' test split."""
    caption: str
    """What is searched for by picture; of a picture, its first caption."""
    itc: float
    """Cosine similarity, -1 to 1."""
    itm: float
    """Probability from 0 to 1 that picture and sentence fit."""
    itc_rank: int
    """Place by ITC alone, from 1."""


class Hits(TypedDict):
    hits: list[Hit]
    """Of the `CANDIDATES` best by ITC, those that ITM likes best."""
    note: str
    """Why there are none, or what of a long sentence was not read."""


class Found(TypedDict):
    teacher: Hits
    student: Hits


@inputs.checked
def search(teacher: str, student: str, sentence: str) -> Found:
    """The gallery's pictures that fit a sentence best: ITC chooses 16 of 200, ITM ranks them anew; the best five."""
    sentence = inputs.text(sentence, "sentence")

    def find(vlm: VLM) -> list[Hit]:
        embeds = _gallery(vlm, "pictures")
        with models.turn:
            itc = vlm.embed_texts([sentence])[0] @ embeds.T
            best = itc.topk(CANDIDATES).indices.tolist()
            itm = vlm.match([GALLERY[i].image for i in best], [sentence] * len(best))
        return _hits(best, itc[best], itm, [_captions()[i] for i in best])

    return _both(teacher, student, find, sentence)


@inputs.checked
def sentences(picture: str, teacher: str, student: str) -> Found:
    """The reverse: the gallery's first captions that fit a picture best, chosen and ranked in the same way."""
    image = images.read(picture)

    def find(vlm: VLM) -> list[Hit]:
        embeds = _gallery(vlm, "captions")
        with models.turn:
            itc = vlm.embed_images([image])[0] @ embeds.T
            best = itc.topk(CANDIDATES).indices.tolist()
            itm = vlm.match([image] * len(best), [_captions()[i] for i in best])
        return _hits(best, itc[best], itm, [_captions()[i] for i in best])

    return _both(teacher, student, find)


_kept: WeakKeyDictionary[VLM, dict[str, Tensor]] = WeakKeyDictionary()
_texts: list[str] = []


def _captions() -> list[str]:
    if not _texts:
        _texts.extend(GALLERY[i].captions[0] for i in range(len(GALLERY)))
    return _texts


def _gallery(vlm: VLM, what: str) -> Tensor:
    """The gallery's pictures or captions as ITC compares them [200, E], computed once a model, a step at a time."""
    kept = _kept.setdefault(vlm, {})
    if what not in kept:
        found = []
        for start in range(0, len(GALLERY), STEP):
            places = range(start, min(start + STEP, len(GALLERY)))
            with models.turn:
                if what == "pictures":
                    found.append(vlm.embed_images([GALLERY[i].image for i in places]))
                else:
                    found.append(vlm.embed_texts([_captions()[i] for i in places]))
        kept[what] = torch.cat(found)
    return kept[what]


def _hits(best: list[int], itc: Tensor, itm: Tensor, texts: list[str]) -> list[Hit]:
    order = itm.argsort(descending=True, stable=True).tolist()[:SHOWN]
    return [Hit(place=best[i], caption=texts[i], itc=itc[i].item(), itm=itm[i].item(), itc_rank=i + 1) for i in order]


def _both(teacher: str, student: str, find, sentence: str = "") -> Found:
    found = {}
    for side, vlm in models.pair(teacher, student).items():
        try:
            hits = find(vlm)
            with models.turn:
                found[side] = Hits(hits=hits, note=parts.unread(vlm, "the sentence", [sentence]))
        except MissingAbility as unable:
            found[side] = Hits(hits=[], note=str(unable))
    return found


# --- as the page shows it ---------------------------------------------------------------------------------------------


def show(found: Found, names: tuple[str, str], as_pictures: bool) -> str:
    """Both models' hits side by side; one that both found is marked."""
    shared = set.intersection(*({hit["place"] for hit in found[side]["hits"]} for side in parts.SIDES))
    cards = {}
    for side, name in zip(parts.SIDES, names, strict=True):
        body = "".join(
            _hit(rank, hit, hit["place"] in shared, as_pictures) for rank, hit in enumerate(found[side]["hits"], 1)
        )
        body = f"<ol>{body}</ol>" if body else ""
        body += f'<p class="note">{escape(found[side]["note"])}</p>' if found[side]["note"] else ""
        cards[side] = parts.card(side, models.role(name, side), name, body)
    both = len(shared)
    said = f"Both found {both} of the same {SHOWN}; those are marked." if both else "They share none."
    return parts.pair(cards, said if all(found[side]["hits"] for side in parts.SIDES) else "")


def _hit(rank: int, hit: Hit, shared: bool, as_pictures: bool) -> str:
    moved = hit["itc_rank"] - rank
    arrow = f"▲{moved}" if moved > 0 else f"▼{-moved}" if moved < 0 else "="
    scores = (
        f"<small>ITM {100 * hit['itm']:.1f}% · ITC {hit['itc']:.2f} "
        f'<abbr title="ITC alone put it at {hit["itc_rank"]}">{arrow}</abbr></small>'
    )
    words = escape(hit["caption"])
    seen = _button(hit) if as_pictures else ""
    return f'<li class="hit{" shared" if shared else ""}">{seen}<div><span>{words}</span>{scores}</div></li>'


def _button(hit: Hit) -> str:
    seen = parts.picture(GALLERY[hit["place"]].image, hit["caption"])
    return f'<button type="button" data-index="{hit["place"]}" title="Look at this picture">{seen}</button>'


def tab(names: tuple[gr.Dropdown, gr.Dropdown], picture: gr.Image) -> None:
    with gr.Row(elem_classes="ask"):
        sentence = gr.Textbox(_captions()[35], label="Sentence", scale=3,
                              min_width=240, max_lines=1, elem_id="sentence")  # fmt: skip
        find = gr.Button("Find pictures", variant="primary", scale=1, min_width=130, elem_id="find")
        reverse = gr.Button("Sentences for my picture", scale=1, min_width=250, elem_id="reverse")
    out, place = gr.HTML(parts.hint(EMPTY), js_on_load=parts.PICK, elem_id="found"), gr.JSON(visible=False)
    asked, asked_reverse = [*names, sentence], [picture, *names]
    endpoint(search, asked, long=True, line=SEARCH)
    endpoint(sentences, asked_reverse, long=True, line=SEARCH)

    def found(teacher, student, words):
        return show(search(teacher, student, words), (teacher, student), as_pictures=True)

    def found_reverse(image, teacher, student):
        return show(sentences(image, teacher, student), (teacher, student), as_pictures=False)

    def chosen(place):
        return GALLERY[place].image

    event = dict(api_visibility="private", show_progress="minimal", **SEARCH)
    finding = gr.on([find.click, sentence.submit], guarded(found, long=True), asked, out, **event)
    reading = reverse.click(guarded(found_reverse, long=True), asked_reverse, out, **event)
    void = dict(outputs=out, api_visibility="private", trigger_mode="multiple")
    gr.on([name.change for name in names], None, js=at_once(parts.hint(EMPTY)), cancels=[finding, reading], **void)
    kept = f"shown => shown.includes('data-index') ? shown : {json.dumps(parts.hint(EMPTY))}"
    picture.change(None, out, js=kept, cancels=reading, **void)
    clicked = out.click(None, None, place, js=parts.picked("found"), api_visibility="private")
    gone = clicked.then(chosen, place, picture, api_visibility="private", **CHOICE).then(None, js=parts.RELEASE)
    gone.then(None, js=parts.SEEN)
