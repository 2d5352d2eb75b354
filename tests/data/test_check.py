"""Faults are named by `check`, raised where they are fatal, and skipped and counted elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlip import data
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.check import check
from dlip.data.folders.dataset import Folder
from tests.data.helpers import encoded, write_captioned, write_shards


@pytest.fixture
def faulty(tmp_path):
    """A folder with one fault of each kind."""
    (images := tmp_path / "images").mkdir()
    for i, name in enumerate(("a", "b", "c", "d", "cut", "val")):
        (images / f"{name}.png").write_bytes(encoded(20 * i))
    shutil.copy(images / "a.png", images / "copy.png")  # the same image in two splits, under another name
    shutil.copy(images / "b.png", images / "twin.png")
    (images / "cut.png").write_bytes((images / "cut.png").read_bytes()[:45])
    captions = {"a": ["one", "one", "two"], "b": ["two"], "twin": ["three"], "c": [" ", "four"], "d": [], "cut": ["x"]}
    captions |= {"gone": ["y"], "val": ["z"], "copy": ["w"]}
    rows = [
        dict(filename=f"{n}.png", split="val" if n in ("val", "copy") else "train", sentences=[{"raw": c} for c in cs])
        for n, cs in captions.items()
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": rows}))
    questions = [("val", "val", "what?", []), ("val", "val", " ", ["x"]), ("a", "val", "who?", ["me"])]
    vqa = [{"image": f"{n}.png", "split": s, "question": q, "answers": a} for n, s, q, a in questions]
    (tmp_path / "vqa.json").write_text(json.dumps(vqa))
    return tmp_path


def test_every_fault_is_named(faulty, capsys):
    result = check(str(faulty))
    assert result["splits"] == {
        "train": {"images": 4, "captions": 6, "questions": 0},
        "val": {"images": 2, "captions": 2, "questions": 0},
    }
    (cut,) = [fault for fault in result["faults"] if fault.startswith("cut.png cannot be read")]
    assert {*result["faults"]} - {cut} == {
        "gone.png is missing",
        "c.png has an empty caption",
        "d.png has no caption",
        "val.png has an empty question",
        "val.png has no answer to 'what?'",
        "a.png is in the split train as well",
        "a.png (train) has 2 times 'one'",
        "twin.png (train) is b.png (train)",
        "copy.png (val) is a.png (train)",
    }
    assert not result["ok"]
    assert main(["data", "check", str(faulty), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert main(["data", str(faulty)]) == 0
    assert "cut.png" in capsys.readouterr().out


def shards(path: Path, kinds: str) -> Path:
    return write_shards(path / "shards", Folder(write_captioned(path, kinds), "train"), 2)


@pytest.mark.parametrize("write", [write_captioned, shards])
def test_a_fatal_fault_beyond_the_limit_is_not_found(write: Callable, tmp_path: Path):
    name = write(tmp_path / "set", "gggc")
    dataset = data.open(name, "train", limit=3)
    assert not dataset.verify() and len(dataset) == 3
    assert dataset.counts() == {"images": 3, "captions": 3, "questions": 0}
    for limit in (4, None):
        with pytest.raises(UserError, match="1 fault"):
            data.open(name, "train", limit=limit).verify()


@pytest.mark.parametrize("write", [write_captioned, shards])
def test_other_images_take_the_place_of_skipped_ones(write: Callable, tmp_path: Path):
    dataset = data.open(write(tmp_path / "set", "cgcgg"), "train", limit=2, on_error="skip")
    with pytest.warns(UserWarning, match="2 faults"):
        assert len(dataset.verify()) == 2
    assert len([*dataset]) == len(dataset) == 2  # all can be decoded
