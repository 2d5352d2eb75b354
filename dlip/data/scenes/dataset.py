"""The built-in dataset: generated images with exact ground truth, the same on every machine."""

import hashlib
from functools import lru_cache

from dlip.common.errors import UserError
from dlip.data.batch import Example
from dlip.data.dataset import DataSet, epoch_order
from dlip.data.scenes.questions import questions
from dlip.data.scenes.render import render
from dlip.data.scenes.text import captions
from dlip.data.scenes.world import Scene, make_scene, tags

SPLITS = {"train-large": 200_000, "train-small": 4_000, "val": 500, "test": 1_000, "test-5k": 5_000}
"""Images of each split: to train a teacher, to train a student, to validate and to test. `test-5k` begins with the
images of `test`, for retrieval among five times as many, as COCO's 5K beside its 1K."""
DISJOINT_SPLITS = ("train-large", "train-small", "val", "test")
"""Splits without a common layout."""
_BLOCK = 10_000_000  # numbers reserved for the scenes of one split and seed
CACHED_ITEMS = 8192
"""Items kept in memory, about 40 KB each; all of `train-small`."""
_FINGERPRINTED = 256  # items that represent all of them in a fingerprint


class Scenes(DataSet):
    """A split of the built-in data. Scene i is a function of (seed, split, i) alone, not of the size.

    Splits are disjoint by construction, whatever their seeds: the sum of the objects' left and top edges, modulo the
    number of splits, is the split's place in `DISJOINT_SPLITS`, so that no two of them share a layout.
    """

    name = "scenes"
    fields = frozenset({"captions", "questions", "tags"})
    has_scenes = True

    def __init__(self, split: str, seed: int = 0, size: int | None = None):
        """Raise UserError if there is no such split, or if seed or size are out of range."""
        if split not in SPLITS:
            raise UserError(f"scenes has no split {split!r}; choose one of: {', '.join(SPLITS)}")
        self.split = split
        self.size = SPLITS[split] if size is None else size
        if not 1 <= self.size <= _BLOCK:
            raise UserError(f"scenes cannot have {size} images; choose a size from 1 to {_BLOCK}")
        if not 0 <= seed < 2**32:
            raise UserError(f"the seed of scenes cannot be {seed}; choose one from 0 to {2**32 - 1}")
        self._place = DISJOINT_SPLITS.index(split.removesuffix("-5k"))
        self._first = (seed * len(DISJOINT_SPLITS) + self._place) * _BLOCK

    def __len__(self) -> int:
        return self.size

    def scene(self, i: int) -> Scene:
        """Ground truth of image i. Raises IndexError beyond the last one."""
        return make_scene(self._number(i), self._place, len(DISJOINT_SPLITS))

    def __getitem__(self, i: int) -> Example:
        """Image i, uint8 [64, 64, 3], with five captions, six questions and tags."""
        return _item(self._number(i), self._place)

    def _number(self, i: int) -> int:
        """Number of image i among all scenes."""
        if not 0 <= i < self.size:
            raise IndexError(f"scenes {self.split} has images 0 to {self.size - 1}, not {i}")
        return self._first + i

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation of the images, another one every epoch, in which twins stay side by side.

        So most batches hold both, and matching has to learn relations.
        """
        return [i for k in epoch_order((self.size + 1) // 2, seed, epoch) for i in (2 * k, 2 * k + 1) if i < self.size]

    def counts(self) -> dict[str, int]:
        """Numbers of images, captions and questions."""
        return {"images": len(self), "captions": 5 * len(self), "questions": 6 * len(self)}

    def fingerprint(self) -> str:
        """Hash of images and texts: it changes with what the generator draws or writes."""
        digest = hashlib.sha256(f"{self.split} {self._first} {self.size}".encode())
        for i in range(min(_FINGERPRINTED, self.size)):
            item = self[i]
            digest.update(item.image.tobytes() + repr((item.captions, item.questions)).encode())
        return digest.hexdigest()


@lru_cache(maxsize=CACHED_ITEMS)
def _item(number: int, place: int) -> Example:
    scene = make_scene(number, place, len(DISJOINT_SPLITS))
    image, kinds = render(scene), tags(scene)
    image.flags.writeable = kinds.flags.writeable = False  # the item is shared
    return Example(image, scene.image_id, captions(scene), questions(scene), kinds)
