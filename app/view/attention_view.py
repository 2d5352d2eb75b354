"""Where two models look, as JSON and as HTML: two maps of one picture, how far they differ, and whether they hit."""

from collections.abc import Callable
from functools import cache
from html import escape
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dlip.common.errors import MissingAbility, UserError
from dlip.data.scenes.render import masks
from dlip.data.scenes.truth import certain_referents
from dlip.data.scenes.world import Scene
from dlip.evaluation.attention_maps import cover, differ, mass, named, patches, pointing
from dlip.plots import css_scale, overlay, peak
from dlip.plots.html import data_uri
from dlip.vlm import VLM

from .. import events, images, models
from . import parts

MOST = 96
"""Most cells along a side of a map that leaves the server."""


class Side(TypedDict):
    """One model's map."""

    model: str
    note: str
    """Why the model has no map, where its checkpoint lacks the weights; else empty."""
    map: list[list[float]]
    """Rows from the top: shares of the whole, signs apart, that is, their sizes sum to 1; empty where there is none."""
    hit: bool | None
    """Whether its greatest cell, or half of several, holds a pixel of the object; null without an object."""
    share: float | None
    """How much of what is positive lies on the object, 0 to 1."""
    chance_hit: float | None
    chance_share: float | None
    """The same of a map that knows nothing."""


class Look(TypedDict):
    """Two models' maps of one thing."""

    about: str
    kind: str
    """What the maps are of: attention, or a method of attribution."""
    teacher: Side
    student: Side
    divergence: float | None
    """Jensen-Shannon divergence in bits: 0 where the maps are equal, 1 where they share nothing; null of one map."""
    object: int | None
    """The place in the scene's objects of the one that the word names; null where there is none."""


def of_each(pair: dict[str, VLM], make: Callable[[str, VLM], Tensor]) -> dict[str, Tensor | MissingAbility]:
    """What `make` makes of each side and its model; of one that lacks the weights, what it says of that."""
    found: dict[str, Tensor | MissingAbility] = {}
    for side, vlm in pair.items():
        try:
            found[side] = make(side, vlm)
        except MissingAbility as unable:
            found[side] = unable
    return found


def compare(
    about: str, kind: str, names: dict[str, str], maps: dict[str, Tensor | MissingAbility], scene: Scene | None,
    thing: int | None,
) -> Look:  # fmt: skip
    """maps: side -> [1+P], its [CLS] first; values below 0 lower a score, and count neither for hits nor divergence."""
    mask = None if scene is None or thing is None else torch.from_numpy(masks(scene)[thing])
    sides, raised = {}, []
    for side, over in maps.items():
        sides[side] = Side(model=names[side], note="", map=[], hit=None, share=None, chance_hit=None,
                           chance_share=None)  # fmt: skip
        if isinstance(over, MissingAbility):
            sides[side]["note"] = events.sentence(str(over))
            continue
        above = over.clamp(min=0)
        raised.append(above / above.sum().clamp(min=1e-9))
        sides[side] |= _scored(over, raised[-1], mask)
    bits = differ(*raised).item() if len(raised) == 2 else None
    return Look(about=about, kind=kind, **sides, divergence=bits, object=None if mask is None else thing)


def _scored(over: Tensor, raised: Tensor, mask: Tensor | None) -> dict:
    """A side's map and, where there is an object, its scores."""
    side = round((len(over) - 1) ** 0.5)
    grid = over[1:].view(1, side, side)
    if side > MOST:
        grid = F.adaptive_avg_pool2d(grid, MOST)
    shares = (grid / grid.abs().sum().clamp(min=1e-9))[0]
    found: dict = {"map": [[round(x, 6) for x in row] for row in shares.tolist()]}
    if mask is not None:
        covered, within = cover(mask, side), patches(raised)
        found |= {"hit": pointing(within, covered).item(), "share": mass(within, covered).item()}
        found |= {"chance_hit": (covered > 0).float().mean().item(), "chance_share": covered.mean().item()}
    return found


def scene_of(image: Image.Image) -> Scene | None:
    """What is true of a picture that is one of the gallery's."""
    place = _places().get(image.tobytes())
    return None if place is None else images.GALLERY.scene(place)


@cache
def _places() -> dict[bytes, int]:
    return {images.GALLERY[i].image.tobytes(): i for i in range(len(images.GALLERY))}


def spoken(word: int, text: str) -> str:
    """The word at a place of a text. Raises UserError where there is none."""
    words = text.split()
    if word >= len(words):
        raise UserError(f"there is no word {word} in a text of {len(words)}; count from 0")
    return words[word]


def thing_of(word: int, text: str, scene: Scene | None) -> int | None:
    """The place in the scene's objects of the one that a word of a text names beyond doubt."""
    return None if scene is None else named(text, scene, certain_referents).get(word)


def show(look: Look, picture: str, outline: bool = True) -> str:
    """The two maps over the picture on one scale, with their scores, as HTML."""
    image = images.read(picture)
    grids = {side: np.array(look[side]["map"]) for side in parts.SIDES if look[side]["map"]}
    signed = any((grid < 0).any() for grid in grids.values())
    top = max((peak(grid) for grid in grids.values()), default=0.0)
    scene = scene_of(image) if outline and look["object"] is not None else None
    mask = None if scene is None else masks(scene)[look["object"]]
    cards = {}
    for side in parts.SIDES:
        body, name = f'<p class="note">{escape(look[side]["note"])}</p>', look[side]["model"]
        if side in grids:
            alt = f"{look['kind']} of the {side} for “{look['about']}”: most at {_place(grids[side])}"
            body = picture_of(overlay(image, grids[side], top, mask, signed), alt) + _score(look[side])
        cards[side] = parts.card(side, models.role(name, side), name, body)
    scale = _scale(top, signed, look["kind"]) if grids else ""
    return f'<div class="look">{_head(look)}{parts.pair(cards)}{scale}</div>'


def picture_of(image: Image.Image, alt: str) -> str:
    return f'<img src="{data_uri(image)}" alt="{escape(alt)}">'


def _head(look: Look) -> str:
    about = f"{look['kind']}: " if look["kind"] != look["about"] else ""
    about = f"<b>{escape(about)}“{escape(look['about'])}”</b>"
    if (bits := look["divergence"]) is None:
        return f'<div class="differ">{about}</div>'
    meter = f'<meter min="0" max="1" value="{bits:.3f}" aria-label="how far the two maps differ"></meter>'
    said = f"the maps differ by <b>{bits:.3f}</b> of 1 bit"
    return (
        f'<div class="differ">{about}<span>{meter} {said}</span>'
        "<small>Jensen-Shannon: 0 the same, 1 nothing in common</small></div>"
    )


def _score(side: Side) -> str:
    """What of the map falls on the object, beside what falls there by chance."""
    if side["hit"] is None:
        return ""
    verdict = "hit" if side["hit"] else "miss"
    return (
        f'<p class="score"><b class="is-{verdict}">{verdict}</b> {100 * side["share"]:.0f}% on the object, by chance '
        f"{100 * side['chance_share']:.0f}% (a hit: {100 * side['chance_hit']:.0f}%)</p>"
    )


def _scale(top: float, signed: bool, kind: str) -> str:
    least, most = (f"−{top:.2g}%", f"+{top:.2g}%") if signed else ("0", f"{top:.2g}%")
    attends = kind == "rollout" or kind.endswith("attention")
    what = "of what raises and lowers the score" if signed else f"of the {'attention' if attends else 'score'}"
    return (
        f'<div class="scale"><span>{least}</span><i style="background: {css_scale(signed)}"></i>'
        f"<span>{most} {what} in one cell</span></div>"
    )


def _place(grid: np.ndarray) -> str:
    """Where the most of a map is, in words."""
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    rows, columns = ("top", "middle", "bottom"), ("left", "centre", "right")
    return f"the {rows[3 * row // len(grid)]} {columns[3 * column // len(grid)]}"
