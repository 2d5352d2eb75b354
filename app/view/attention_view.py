"""Two models' maps over one image, as JSON and as HTML: how far they differ, and whether they hit an object."""

from collections.abc import Callable
from functools import cache
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dlip.common.errors import MissingAbility, UserError
from dlip.data.scenes.render import masks
from dlip.data.scenes.truth import certain_referents
from dlip.data.scenes.world import SIDE, Scene
from dlip.evaluation.attention_maps import map_divergence, mask_coverage, mass, patches, pointing, word_objects
from dlip.plots import css_scale, overlay, peak
from dlip.plots.html import PIXEL_ART_SIDE, data_uri
from dlip.vlm import VLM

from .. import images
from ..endpoints import as_sentence
from . import parts

MAX_CELLS = 96
"""Cells along one side of a map that leaves the server; a larger map is averaged."""


class Side(TypedDict):
    """One model's map."""

    model: str
    note: str
    """Why there is no map, if the checkpoint lacks the weights; else empty."""
    map: list[list[float]]
    """Rows from the top; absolute values sum to 1. Empty if there is none."""
    hit: bool | None
    """Whether the largest cell, or half of several, covers a pixel of the object; null without an object."""
    share: float | None
    """Share of the positive values on the object, 0 to 1."""
    chance_hit: float | None
    chance_share: float | None
    """Expected values of a uniform map."""


class Maps(TypedDict):
    """Two models' maps of one word, text or image."""

    about: str
    kind: str
    """Kind of attention, or method of attribution."""
    teacher: Side
    student: Side
    divergence: float | None
    """Jensen-Shannon divergence in bits: 0 for equal maps, 1 for disjoint ones; null where a map has none above 0."""
    object: int | None
    """Index of the scene's object that the word names; null if it names none."""


def for_each_model(pair: dict[str, VLM], make: Callable[[str, VLM], Tensor]) -> dict[str, Tensor | MissingAbility]:
    """Side -> `make(side, vlm)`, or the exception of a model that lacks the weights."""
    results: dict[str, Tensor | MissingAbility] = {}
    for side, vlm in pair.items():
        try:
            results[side] = make(side, vlm)
        except MissingAbility as unable:
            results[side] = unable
    return results


def compare_maps(
    about: str,
    kind: str,
    names: dict[str, str],
    maps: dict[str, Tensor | MissingAbility],
    scene: Scene | None = None,
    object_index: int | None = None,
) -> Maps:
    """Compare maps [1+P] per side, [CLS] first. Negative values lower a score; hits and divergence ignore them."""
    mask = None if scene is None or object_index is None else torch.from_numpy(masks(scene)[object_index])
    sides, positive = {}, []
    for side, values in maps.items():
        unscored = dict(hit=None, share=None, chance_hit=None, chance_share=None)
        sides[side] = Side(model=names[side], note="", map=[], **unscored)
        if isinstance(values, MissingAbility):
            sides[side]["note"] = as_sentence(str(values))
            continue
        above = values.clamp(min=0)
        own = above / above.sum().clamp(min=1e-9)
        sides[side] |= _scores(values, own, mask)
        if own.any():
            positive.append(own)
    bits = map_divergence(*positive).item() if len(positive) == 2 else None
    return Maps(about=about, kind=kind, **sides, divergence=bits, object=None if mask is None else object_index)


def _scores(values: Tensor, positive: Tensor, mask: Tensor | None) -> dict:
    """A side's map and, with an object, its scores."""
    side = round((len(values) - 1) ** 0.5)
    grid = values[1:].view(1, side, side)
    if side > MAX_CELLS:
        grid = F.adaptive_avg_pool2d(grid, MAX_CELLS)
    shares = (grid / grid.abs().sum().clamp(min=1e-9))[0]
    scores: dict = {"map": [[round(x, 6) for x in row] for row in shares.tolist()]}
    if mask is not None:
        covered, on_patches = mask_coverage(mask, side), patches(positive)
        scores |= {"hit": pointing(on_patches, covered).item(), "share": mass(on_patches, covered).item()}
        scores |= {"chance_hit": (covered > 0).float().mean().item(), "chance_share": covered.mean().item()}
    return scores


def scene_of(image: Image.Image) -> Scene | None:
    """The scene that an image shows, if it is one of `images.SCENES`."""
    index = _scene_index().get(image.tobytes()) if image.size == (SIDE, SIDE) else None
    return None if index is None else images.SCENES.scene(index)


@cache
def _scene_index() -> dict[bytes, int]:
    return {images.SCENES[i].image.tobytes(): i for i in range(len(images.SCENES))}


def word_at(index: int, text: str) -> str:
    """The word of a text at an index. Raises UserError if there is none."""
    words = text.split()
    if index >= len(words):
        raise UserError(f"there is no word {index} in a text of {len(words)}; count from 0")
    return words[index]


def named_object(word: int, text: str, scene: Scene | None) -> int | None:
    """Index of the scene's object that a word of a text names without ambiguity."""
    return None if scene is None else word_objects(text, scene, certain_referents).get(word)


def show(maps: Maps, image: Image.Image) -> str:
    """The two maps over the image on one scale, with their scores, as HTML."""
    grids = {side: np.array(maps[side]["map"]) for side in parts.SIDES if maps[side]["map"]}
    signed = any((grid < 0).any() for grid in grids.values())
    top = max((peak(grid) for grid in grids.values()), default=0.0)
    scene = scene_of(image) if maps["object"] is not None else None
    mask = None if scene is None else masks(scene)[maps["object"]]
    results, kind = [], "png" if max(image.size) <= PIXEL_ART_SIDE else "jpeg"
    for side in parts.SIDES:
        results.append({**maps[side], "src": ""})
        if side in grids:
            results[-1] |= {
                "src": data_uri(overlay(image, grids[side], top, mask, signed), kind),
                "most": _place(grids[side]),
            }
    names = [maps[side]["model"] for side in parts.SIDES]
    attends = maps["kind"] == "rollout" or maps["kind"].endswith("attention")
    scale = dict(top=f"{top:.1f}" if grids else "", signed=signed, gradient=css_scale(signed))
    unit = "attention" if attends else "score"
    return parts.pair("attention.html", names, results, maps=maps, unit=unit, **scale)


def _place(grid: np.ndarray) -> str:
    """Describe where the largest cell of a map is."""
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    rows, columns = ("top", "middle", "bottom"), ("left", "center", "right")
    return f"the {rows[3 * row // len(grid)]} {columns[3 * column // len(grid)]}"
