"""A folder with one fault of each kind, and one with none."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dlip.cli import main
from dlip.data.audit import check, report
from dlip.data.scenes.dataset import SPLITS


@pytest.fixture
def faulty(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, name in enumerate(("a", "b", "c", "d", "cut", "val")):
        Image.fromarray(np.full((9, 9, 3), 20 * i, np.uint8)).save(images / f"{name}.png")
    shutil.copy(images / "a.png", images / "copy.png")  # the same image in two splits, under another name
    shutil.copy(images / "b.png", images / "twin.png")
    (images / "cut.png").write_bytes((images / "cut.png").read_bytes()[:45])
    captions = {
        "a": ["one", "one", "two"], "b": ["two"], "twin": ["three"], "c": [" ", "four"], "d": [], "cut": ["x"],
        "gone": ["y"], "val": ["z"], "copy": ["w"],
    }  # fmt: skip
    rows = [
        {
            "filename": f"{n}.png",
            "split": "val" if n in ("val", "copy") else "train",
            "sentences": [{"raw": c} for c in cs],
        }
        for n, cs in captions.items()
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": rows}))
    questions = [("val", "val", "what?", []), ("val", "val", " ", ["x"]), ("a", "val", "who?", ["me"])]
    vqa = [{"image": f"{n}.png", "split": s, "question": q, "answers": a} for n, s, q, a in questions]
    (tmp_path / "vqa.json").write_text(json.dumps(vqa))
    return tmp_path


def test_one_fault_of_each_kind(faulty, capsys):
    result = check(str(faulty))
    assert result["splits"] == {
        "train": {"images": 4, "captions": 6, "questions": 0}, "val": {"images": 2, "captions": 2, "questions": 0}
    }  # fmt: skip
    assert result["faults"].pop("corrupt images or shards")[0].startswith("cut.png cannot be read")
    assert result["faults"] == {
        "missing images": ["gone.png is missing"],
        "empty captions": ["c.png has an empty caption"],
        "images without caption": ["d.png has no caption"],
        "empty questions": ["val.png has an empty question"],
        "questions without answers": ["val.png has no answer to 'what?'"],
        "images in two splits": ["a.png is in the split train as well"],
        "repeated captions": ["a.png (train) has 2 times 'one'"],
        "repeated images": ["twin.png (train) is b.png (train)"],
        "images shared by splits": ["copy.png (val) is a.png (train)"],
    }
    assert result["shared_captions"] == 1 and not result["ok"] and result["writers"] == {"human": 8}
    assert main(["data", "check", str(faulty)]) == 0
    out = capsys.readouterr().out
    assert "1 images shared by splits:\n  copy.png (val) is a.png (train)\n" in out
    assert main(["data", "check", str(faulty), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"]["missing images"] == ["gone.png is missing"]


def test_no_faults(monkeypatch):
    for split in SPLITS:
        monkeypatch.setitem(SPLITS, split, 5)
    result = check("scenes")
    assert result["ok"] and result["faults"] == {} and report(result).endswith("no faults")
    assert result["splits"]["test"] == {"images": 5, "captions": 25, "questions": 30}


def test_shard_by_command(faulty, tmp_path, capsys):
    words = ["data", "shard", str(faulty), "--out", str(tmp_path / "shards")]
    assert main(words) == 2
    assert "faults" in capsys.readouterr().err
    assert main([*words, "--on-error", "skip", "--splits", "train", "--images", "3"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["train-00000.tar", "3", "images"]
    assert main(["data", str(tmp_path / "shards"), "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["splits"] == {"train": {"images": 4, "captions": 6, "questions": 0}} and result["faults"] == []


def test_a_quoted_question_is_no_fault_of_another_kind(faulty):
    question = {"image": "a.png", "split": "train", "question": "what is missing?", "answers": []}
    (faulty / "vqa.json").write_text(json.dumps([question]))
    assert "a.png has no answer to 'what is missing?'" in check(str(faulty))["faults"]["questions without answers"]


def test_a_split_without_a_usable_image_is_counted_too(faulty, capsys):
    (faulty / "images" / "copy.png").unlink()
    (faulty / "images" / "val.png").unlink()
    assert main(["data", str(faulty), "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["splits"]["val"] == {"images": 0, "captions": 0, "questions": 0}
    assert any("no usable image" in fault for fault in result["faults"])
