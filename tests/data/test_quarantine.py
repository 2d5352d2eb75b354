"""A limited dataset checks and counts its own images, whatever kind of dataset it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dlip import data
from dlip.common.errors import UserError
from dlip.data.folders.dataset import Folder
from dlip.data.shards.write import write_shards


def folder(path: Path, images: str) -> Path:
    """Write a folder with one captioned image for each letter: a good, a corrupt or a missing one ("gcm")."""
    (path / "images").mkdir(parents=True)
    rows = []
    for i, kind in enumerate(images):
        file = path / "images" / f"{i}.png"
        if kind == "g":
            Image.new("RGB", (8, 8), (20 * i, 90, 200)).save(file)
        elif kind == "c":
            file.write_bytes(b"no image")
        rows.append(dict(filename=file.name, split="test", sentences=[{"raw": f"shade {i}"}]))
    (path / "captions.json").write_text(json.dumps({"images": rows}))
    return path


def shards(path: Path, images: str) -> Path:
    write_shards(path / "shards", {"test": Folder(folder(path, images), "test")}, 2)
    return path / "shards"


def joined(path: Path, images: str) -> str:
    return "+".join(str(folder(path / f"{i}", part)) for i, part in enumerate((images[:2], images[2:])))


@pytest.mark.parametrize("write", [folder, shards, joined])
def test_a_fatal_fault_beyond_the_limit_is_not_found(write: Callable, tmp_path: Path):
    name = write(tmp_path, "gggc")
    dataset = data.open(name, "test", limit=3)
    assert not dataset.verify()
    assert dataset.counts() == {"images": 3, "captions": 3, "questions": 0} and len(dataset) == 3
    whole = [part.dataset for part in getattr(dataset, "datasets", [dataset])]
    assert sum(map(len, whole)) == 4  # so that the order of an epoch does not change
    data.open(name, "test", limit=1).verify()
    for limit in (4, 9, None):
        with pytest.raises(UserError, match="has 1 fault"):
            data.open(name, "test", limit=limit).verify()


@pytest.mark.parametrize("write", [folder, shards, joined])
def test_other_images_take_the_place_of_skipped_ones(write: Callable, tmp_path: Path):
    dataset = data.open(write(tmp_path, "cgcgg"), "test", limit=2, on_error="skip")
    with pytest.warns(UserWarning, match="skipped 2 faults"):
        dataset.verify()
    assert len([*dataset]) == len(dataset) == 2  # all can be decoded
    assert dataset.counts() == {"images": 2, "captions": 2, "questions": 0}


def test_limited_scenes():
    dataset = data.open("scenes", "val", limit=3)
    assert not dataset.verify() and dataset.counts() == {"images": 3, "captions": 15, "questions": 18}
    assert dataset.first(2).counts()["images"] == 2


def test_an_image_missing_beyond_the_limit_has_no_part_in_the_fingerprint(tmp_path: Path):
    before = data.open(folder(tmp_path, "gm"), "test", limit=1).fingerprint()
    rows = json.loads((tmp_path / "captions.json").read_text())["images"]
    (tmp_path / "captions.json").write_text(json.dumps({"images": rows[:1]}))
    assert data.open(tmp_path, "test", limit=1).fingerprint() == before
