"""The built-in data: generated pictures with exact ground truth, the same on every machine."""

import hashlib
from functools import lru_cache

from dlip.common.errors import UserError
from dlip.data.batch import Item
from dlip.data.scenes.questions import questions
from dlip.data.scenes.render import render
from dlip.data.scenes.text import captions
from dlip.data.scenes.world import Scene, make_scene, tags

SPLITS = {"train-large": 200_000, "train-small": 4_000, "val": 500, "test": 1_000, "test-5k": 5_000}
"""Pictures of each split: a teacher's, a student's, and those to measure on. `test-5k` begins with `test`: retrieval
among five times as many, as COCO's 5K beside its 1K."""
DISJOINT_SPLITS = ("train-large", "train-small", "val", "test")
"""Splits of which no two share a layout."""
_BLOCK = 10_000_000  # numbers set aside for the scenes of one split and seed
CACHED_ITEMS = 8192
"""Pictures that are kept once made, about 12 KB each with their texts: those of `train-small` are made once a run."""
_SAMPLED = 256  # pictures that stand for all in a fingerprint


class Scenes:
    """A split of the built-in data. Scene i is a function of (seed, split, i) alone, whatever the size.

    Splits are disjoint by construction, whatever their seeds: the sum of the objects' left and top edges,
    modulo the number of places, is the split's place in `PLACES`, so that no two of them share a layout.
    """

    name = "scenes"

    def __init__(self, split: str, seed: int = 0, size: int | None = None):
        """Raises UserError where there is no such split, or where seed or size are out of range."""
        if split not in SPLITS:
            raise UserError(f"the data 'scenes' have no split {split!r}; choose one of {', '.join(SPLITS)}")
        self.split = split
        self.size = SPLITS[split] if size is None else size
        if not 1 <= self.size <= _BLOCK:
            raise UserError(f"scenes cannot have {size} pictures; choose a size from 1 to {_BLOCK}")
        if not 0 <= seed < 2**32:
            raise UserError(f"the seed of scenes cannot be {seed}; choose one from 0 to {2**32 - 1}")
        self.faults: list[str] = []
        self._place = DISJOINT_SPLITS.index(split.removesuffix("-5k"))
        self._first = (seed * len(DISJOINT_SPLITS) + self._place) * _BLOCK

    def __len__(self) -> int:
        return self.size

    def scene(self, i: int) -> Scene:
        """What is true of picture i. Raises IndexError beyond the last one."""
        return make_scene(self._number(i), self._place, len(DISJOINT_SPLITS))

    def __getitem__(self, i: int) -> Item:
        """Picture i, uint8 [48, 48, 3], with five captions, six questions and a tag for each kind of object in it."""
        return _item(self._number(i), self._place)

    def _number(self, i: int) -> int:
        """Of all scenes' that of picture i."""
        if not 0 <= i < self.size:
            raise IndexError(f"scenes {self.split} has pictures 0 to {self.size - 1}, not {i}")
        return self._first + i

    def counts(self) -> dict[str, int]:
        """Pictures, captions and questions."""
        return {"images": len(self), "captions": 5 * len(self), "questions": 6 * len(self)}

    def fingerprint(self) -> str:
        """A hash of what the pictures and texts are; a generator that draws or says other things has another."""
        digest = hashlib.sha256(f"{self.split} {self._first} {self.size}".encode())
        for i in range(min(_SAMPLED, self.size)):
            item = self[i]
            digest.update(item.image.tobytes() + repr((item.captions, item.questions)).encode())
        return digest.hexdigest()

    def verify(self) -> None:
        """Nothing that is drawn can be broken."""


@lru_cache(maxsize=CACHED_ITEMS)
def _item(number: int, place: int) -> Item:
    scene = make_scene(number, place, len(DISJOINT_SPLITS))
    image, kinds = render(scene), tags(scene)
    image.flags.writeable = kinds.flags.writeable = False  # it is handed out more than once
    return Item(image, scene.image_id, captions(scene), questions(scene), kinds)
