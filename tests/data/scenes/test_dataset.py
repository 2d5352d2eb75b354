"""The built-in dataset: what is drawn where, and that splits are disjoint."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dlip.data.scenes.dataset import DISJOINT_SPLITS, SPLITS, Scenes
from dlip.data.scenes.render import masks, render
from dlip.data.scenes.world import (
    CELLS,
    LATTICE,
    SIDE,
    TAGS,
    Object,
    Scene,
    tags,
)

GOLDEN = {  # hash of the first ten images with all their texts
    "train-large": "6d4781d138acd168",
    "train-small": "d720dfec9420d08d",
    "val": "a2f5d846f090d827",
    "test": "b8569b6c6b6d7273",
    "test-5k": "b8569b6c6b6d7273",
}


@pytest.fixture(scope="module")
def sample() -> list[Scene]:
    return [Scenes("train-large").scene(i) for i in range(200)]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_never_change(split):
    digest = hashlib.sha256()
    for i in range(10):
        item = Scenes(split)[i]
        assert item.image.shape == (SIDE, SIDE, 3) and item.image.dtype == np.uint8
        texts = [item.image_id, item.captions, [[q.text, q.answers, q.type] for q in item.questions]]
        digest.update(item.image.tobytes() + json.dumps(texts).encode())
    assert digest.hexdigest()[:16] == GOLDEN[split]


def test_splits_have_different_layouts_for_all_seeds():
    layouts: dict[str, set] = {split: set() for split in DISJOINT_SPLITS}
    ids = set()
    for split, residues in layouts.items():
        for seed in (0, 3):
            for scene in map(Scenes(split, seed).scene, range(150)):
                residues.add(sum(o.x + o.y for o in scene.objects) // LATTICE % len(DISJOINT_SPLITS))
                ids.add(scene.image_id)
    assert len(ids) == 150 * 2 * len(DISJOINT_SPLITS)
    assert all(len(residues) == 1 for residues in layouts.values())  # one residue per split, and
    assert len(set.union(*layouts.values())) == len(DISJOINT_SPLITS)  # all different


def test_masks_equal_what_is_drawn(sample):
    for scene in sample[:100]:
        image, visible = render(scene), masks(scene)
        changed = (image != render(replace(scene, objects=()))).any(-1)  # [64, 64]
        assert visible.sum(0).max() == 1  # no pixel has two objects
        covered = visible.any(0)
        assert not (covered & ~changed).any()
        for o, mask in zip(scene.objects, visible, strict=True):
            rows, columns = np.nonzero(mask)
            assert o.y <= rows.min() and rows.max() < o.y + o.width
            assert o.x <= columns.min() and columns.max() < o.x + o.width
            drawn = Counter(map(tuple, image[mask].tolist()))
            assert drawn[o.rgb] >= 0.25 * mask.sum()  # in its own color
            ink = sum(n for pixel, n in drawn.items() if sum(pixel) < 0.4 * sum(o.rgb)) / mask.sum()
            assert ink > 0.04 if o.texture != "plain" else scene.background == "dark" or ink < 0.1


def test_tags_name_the_object_of_each_cell(sample):
    """Small objects have one cell, large ones four."""
    a = Object("small", "plain", "red", "star", 8, 0, 10, (0, 0, 0))
    b = Object("large", "dotted", "blue", "ring", 40, 0, 16, (0, 0, 0))
    shown = tags(replace(sample[0], objects=(b, a))).reshape(CELLS, CELLS, len(TAGS))
    named = {
        (row, column): {TAGS[k] for k in np.flatnonzero(shown[row, column])}
        for row, column in np.argwhere(shown.any(-1)).tolist()
    }
    of_b = {*b.kind, ("left", "red"), ("left", "star")}
    assert named == {(0, 1): {*a.kind, ("right", "blue"), ("right", "ring")}} | {
        cell: of_b for cell in ((0, 5), (0, 6), (1, 5), (1, 6))
    }
    for scene in sample[:100]:  # no cell has two objects
        assert tags(scene)[:, :2].sum() == sum(4 if o.size == "large" else 1 for o in scene.objects)
