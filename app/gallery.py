"""The gallery: images that the Search tab searches, the shipped ones or the user's own."""

import warnings
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dlip import data
from dlip.common.errors import UserError
from dlip.common.text import one_line, plural
from dlip.data.batch import Example
from dlip.data.transforms import as_pil
from dlip.vlm import VLM

from . import images, models
from .view import parts

MAX_IMAGES, MAX_SIDE, BATCH = 2000, 1024, 20
"""Images of a gallery; pixels of the longer side of one in memory; images or captions embedded at a time."""
Kind = Literal["images", "captions"]


@dataclass(frozen=True)
class Entry:
    """What is kept of an image, which is itself read again when it is needed."""

    dataset: Any
    index: int
    caption: str
    """The first one; empty if there is none."""
    thumbnail: Markup
    image_kind: str
    """As `images.kind` has it."""


class Gallery:
    """The readable ones among the first `MAX_IMAGES` images of some datasets: thumbnails, captions and embeddings."""

    def __init__(self, name: str, datasets: list, shipped: bool = False):
        """Read every image once, and warn of those that cannot be read. Raises UserError if there is no other.

        shipped: the built-in models search only the kind of images that they know.
        """
        self.shipped = shipped
        self.entries: list[Entry] = []
        faults, size = [], sum(map(len, datasets))
        rows = islice(((dataset, i) for dataset in datasets for i in range(len(dataset))), MAX_IMAGES)
        for dataset, i in tqdm(rows, "reading the gallery", min(size, MAX_IMAGES), leave=False, disable=None, delay=1):
            try:
                item = dataset[i]
            except UserError as fault:
                faults.append(str(fault))
                continue
            caption = next(iter(item.captions), "")
            thumbnail, image_kind = parts.thumbnail(item.image, caption), images.kind(item.image)
            self.entries.append(Entry(dataset, i, caption, thumbnail, image_kind))
        if not self.entries:
            raise UserError(f"no image of {name} can be read: {one_line(faults[0])}")
        if faults:
            warnings.warn(f"skipped {plural(len(faults), 'image')} of {name}: {one_line(faults[0])}", stacklevel=2)
        self.note = "" if size <= MAX_IMAGES else f"{name} has {size:,} images; the first {MAX_IMAGES:,} are searched."
        self.has_captions = any(entry.caption for entry in self.entries)
        self._embeddings: WeakKeyDictionary[VLM, dict[Kind, Tensor]] = WeakKeyDictionary()

    def image(self, place: int) -> Image.Image:
        """The image, scaled down to `MAX_SIDE`. Raises UserError if it can no longer be read."""
        entry = self.entries[place]
        try:
            image = as_pil(entry.dataset[entry.index].image)
        except UserError:  # names the file on this machine
            raise UserError("an image of the gallery can no longer be read; restart the app") from None
        if max(image.size) > MAX_SIDE:
            image = image.copy()
            image.thumbnail((MAX_SIDE, MAX_SIDE))  # keeps at least one pixel of a side
        return image

    def caption(self, place: int) -> str:
        return self.entries[place].caption

    def places(self, vlm: VLM, kind: Kind) -> list[int]:
        """Indices in `entries` of the images, or of the captions, that a model searches."""
        unknown = {one for one in models.PAIRS if self.shipped and models.out_of_domain(one, (vlm.name, vlm.name))}
        return [
            place
            for place, entry in enumerate(self.entries)
            if entry.image_kind not in unknown and (kind == "images" or entry.caption)
        ]

    def embeddings(self, vlm: VLM, kind: Kind) -> Tensor:
        """ITC embeddings [N, E] of the N `places` of a kind, computed once per model, a batch at a time.

        Raises MissingAbility, and UserError where the model knows none of them.
        """
        cached = self._embeddings.setdefault(vlm, {})
        if kind not in cached:
            embed, read = (vlm.embed_images, self.image) if kind == "images" else (vlm.embed_texts, self.caption)
            places, batches = self.places(vlm, kind), []
            if not places:
                raise UserError(f"this gallery has no {kind} that {vlm.name} knows; choose another model")
            for start in range(0, len(places), BATCH):
                batch = [read(place) for place in places[start : start + BATCH]]
                with models.turn:
                    batches.append(embed(batch))
            cached[kind] = torch.cat(batches)
        return cached[kind]


_own: Gallery | None = None


def use(name: str | None) -> None:
    """Search the images of a dataset, all of its splits; with None, search the shipped ones.

    Raises UserError if there is no such dataset, or no image in it.
    """
    global _own
    options = dict(uncaptioned=True)
    splits = data.splits(name, **options) if name else []
    _own = Gallery(name, [data.open(name, split, on_error="skip", **options) for split in splits]) if name else None


def current() -> Gallery:
    """The user's gallery, or the shipped scenes and photographs."""
    return _own or _shipped()


@cache
def _shipped() -> Gallery:
    photographs = [Example(example.image, 0, example.captions) for example in images.photographs()]
    shipped = Gallery("the shipped images", [images.SCENES, photographs], shipped=True)
    shipped.note = (
        f"They are {len(images.SCENES)} drawn scenes and {plural(len(photographs), 'photograph')}; a shipped model "
        "searches those that it knows."
    )
    return shipped
