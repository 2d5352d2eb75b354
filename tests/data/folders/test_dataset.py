import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlip.common.errors import UserError
from dlip.data.batch import Question
from dlip.data.folders.dataset import Folder, image_id_from_name, splits
from tests.helpers import ROOT

PHOTOS = ROOT.parent / "shared" / "data"


def picture(name: str, *captions: str, split: str = "train", **more) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


def asked(name: str, question: str, *answers: str, split: str = "train", **more) -> dict:
    return {"image": name, "question": question, "answers": list(answers), "split": split, **more}


@pytest.fixture
def make(tmp_path):
    """Writes a folder with a 4 x 3 picture for each name that is not called gone."""

    def build(captions: list[dict] | None = None, vqa: list[dict] | None = None) -> Path:
        for name in [c["filename"] for c in captions or []] + [q["image"] for q in vqa or []]:
            file = tmp_path / "images" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if "gone" not in name:
                Image.new("RGB", (4, 3), "red").save(file)
        if captions is not None:
            (tmp_path / "captions.json").write_text(json.dumps({"images": captions}))
        if vqa is not None:
            (tmp_path / "vqa.json").write_text(json.dumps(vqa))
        return tmp_path

    return build


def names(folder: Folder) -> list[str]:
    return [record.name for record in folder.records]


def test_captions(make):
    path = make([picture("a.png", "one", " two "), picture("b.png", "x", split="val"), picture("c.png", "y")])
    folder = Folder(path, "train")
    assert (folder.name, folder.split, len(folder), folder.faults) == (path.name, "train", 2, [])
    item = folder[0]
    assert (item.captions, item.questions, item.image_id) == (["one", "two"], [], image_id_from_name("a.png"))
    assert (item.image.mode, item.image.size) == ("RGB", (4, 3))
    assert [i.captions for i in folder] == [["one", "two"], ["y"]]
    with pytest.raises(IndexError):
        folder[2]


def test_restval_is_train(make):
    path = make([picture("a.png", "one", split="restval"), picture("b.png", "two")])
    assert names(Folder(path, "train")) == ["a.png", "b.png"]
    with pytest.raises(UserError, match=r"no split 'restval'; .* has: train \(2\)"):
        Folder(path, "restval")


def test_questions_of_a_picture_come_together_and_asked_twice_are_one(make):
    path = make(vqa=[
        asked("a.png", "what?", "cat", question_type="object"), asked("b.png", "where?", "here"),
        asked("a.png", "how many?", "1", " ", "2"), asked("a.png", "what?", "dog"), asked("b.png", "what?", "cow"),
    ])  # fmt: skip
    a, b = Folder(path, "train")
    assert a.questions == [Question("what?", ["cat", "dog"], "object"), Question("how many?", ["1", "2"], "other")]
    assert b.questions == [Question("where?", ["here"]), Question("what?", ["cow"])]


def test_both_files_are_joined_by_picture(make):
    path = make(
        [picture("a.png", "one"), picture("v.png", "x", split="val"), picture("c.png", "two")],
        [asked("d.png", "d?", "1"), asked("c.png", "c?", "2"), asked("./a.png", "a?", "3"), asked("d.png", "e?", "4")],
    )
    folder = Folder(path, "train")
    assert names(folder) == ["a.png", "c.png", "d.png"]
    assert [(r.captions, [q.text for q in r.questions]) for r in folder.records] == [
        (["one"], ["a?"]), (["two"], ["c?"]), ([], ["d?", "e?"])
    ]  # fmt: skip
    assert list(folder.texts()) == ["one", "a?", "3", "two", "c?", "2", "d?", "1", "e?", "4"]


def test_splits_and_counts(make):
    path = make(
        [picture("a.png", "one", "two", split="restval"), picture("b.png", "x", split="val")],
        [asked("a.png", "a?", "1"), asked("a.png", "a?", "2"), asked("c.png", "c?", "3", split="test")],
    )
    assert splits(path) == ["test", "train", "val"]
    assert Folder(path, "train").counts() == {"images": 1, "captions": 2, "questions": 1}
    assert Folder(path, "test").counts() == {"images": 1, "captions": 0, "questions": 1}
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        splits(path / "nowhere")


def test_coco_names_its_folder(make):
    path = make([picture("a.png", "one", filepath="val2014")], [asked("val2014/a.png", "a?", "1")])
    assert [(r.name, len(r.questions)) for r in Folder(path, "train").records] == [("val2014/a.png", 1)]


def test_image_id_is_known_by_heart_and_differs():
    assert image_id_from_name("a.png") == 7952145634355070  # runs to come must find the same
    ids = {image_id_from_name(f"{i}.jpg") for i in range(20_000)}
    assert len(ids) == 20_000 and 0 <= min(ids) and 2**52 < max(ids) < 2**53


def test_pictures_open_lazily(make):
    path = make([picture("a.png", "one"), picture("gone.png", "two")])
    folder = Folder(path, "train")
    assert len(folder) == 2 and folder[0].captions == ["one"]
    with pytest.raises(UserError, match=r"no picture .*gone\.png"):
        folder[1]


TEXT_FAULTS = [
    ([picture("bad.png", "", "fine")], None, "bad.png has an empty caption", True),
    ([picture("bad.png", " \n")], None, "bad.png has an empty caption", False),
    ([picture("bad.png")], None, "bad.png has no caption", False),
    ([{"filename": "bad.png", "split": "train", "sentences": [{}]}], None, "bad.png has an empty caption", False),
    ([], [asked("bad.png", "why?")], "bad.png has no answer to 'why?'", False),
    ([], [asked("bad.png", "why?", "", " ")], "bad.png has no answer to 'why?'", False),
    ([], [asked("bad.png", " ", "so"), asked("bad.png", "b?", "c")], "bad.png has an empty question", True),
]


@pytest.mark.parametrize(("captions", "vqa", "fault", "kept"), TEXT_FAULTS)
def test_faulty_texts_are_named_and_skipped_or_fatal(make, captions, vqa, fault, kept):
    path = make([picture("a.png", "one"), *captions], vqa)
    with pytest.raises(UserError) as caught:
        Folder(path, "train")
    assert f"has 1 fault: {fault}: mend what is wrong" in str(caught.value)
    folder = Folder(path, "train", on_error="skip")
    assert folder.faults == [fault]
    assert names(folder) == ["a.png"] + ["bad.png"] * kept


def test_faults_of_another_split_do_not_matter(make):
    path = make([picture("a.png", "one"), picture("b.png", "", split="val")])
    assert Folder(path, "train").faults == []


def test_a_picture_of_two_splits_stays_in_its_first(make):
    path = make(
        [picture("a.png", "one", split="val"), picture("b.png", "two")],
        [asked("a.png", "a?", "1"), asked("a.png", "b?", "2"), asked("b.png", "c?", "3")],
    )
    with pytest.raises(UserError, match=r"a\.png is in the split val as well"):
        Folder(path, "train")
    folder = Folder(path, "train", "skip")
    assert (names(folder), folder.faults) == (["b.png"], ["a.png is in the split val as well"])
    assert Folder(path, "val")[0].questions == []


def test_many_faults_are_counted_and_the_first_named(make):
    path = make([picture(f"{i}.png", "") for i in range(9)] + [picture("a.png", "one")])
    with pytest.raises(UserError) as caught:
        Folder(path, "train")
    assert "9 faults" in str(caught.value) and "2.png" in str(caught.value) and "3.png" not in str(caught.value)
    assert len(Folder(path, "train", "skip").faults) == 9


def spoil(path: Path) -> dict[str, str]:
    """Pictures that cannot be used, and what must be said of each."""
    images = path / "images"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "cut.jpg")
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:1500])
    (images / "text.jpg").write_bytes(b"<html>404</html>")
    (images / "empty.png").write_bytes(b"")
    (images / "folder.png").mkdir()
    odd = {"nul\0.png": "is missing", "\udc80.png": "is missing", "long" * 99: "is missing"}
    unread = dict.fromkeys(["cut.jpg", "text.jpg", "empty.png", "folder.png"], "cannot be read")
    return {"gone.png": "is missing", **unread, **odd}


def test_verify_finds_bad_pictures(make):
    path = make([picture("a.png", "one")], [asked("b.png", "b?", "c")])
    bad = spoil(path)
    rows = [picture(name, "one") for name in ("a.png", *bad)]
    (path / "captions.json").write_text(json.dumps({"images": rows}))
    with pytest.raises(UserError, match=rf"has {len(bad)} faults: gone\.png is missing; cut\.jpg cannot be read .*;"):
        Folder(path, "train").verify()

    folder = Folder(path, "train", "skip")
    folder.verify()
    assert names(folder) == ["a.png", "b.png"]
    assert len(folder.faults) == len(bad)
    for problem, (name, reason) in zip(folder.faults, bad.items(), strict=True):
        assert problem.startswith(f"{name} {reason}")
    assert [item.image.size for item in folder] == [(4, 3)] * 2
    folder.verify()
    assert len(folder.faults) == len(bad)


def test_verify_reads_a_picture_once_until_it_changes(make, monkeypatch):
    path = make([picture("a.png", "one"), picture("b.png", "two")])
    read = []
    monkeypatch.setattr("dlip.data.folders.dataset.read_image", lambda file: read.append(file.name))
    Folder(path, "train").verify()
    Folder(path, "train").verify()
    assert sorted(read) == ["a.png", "b.png"]
    Image.new("RGB", (40, 30)).save(path / "images" / "b.png")
    Folder(path, "train").verify()
    assert sorted(read) == ["a.png", "b.png", "b.png"]


def test_a_pipe_and_a_device_are_no_pictures(make):
    """Reading either would never end."""
    path = make([picture("a.png", "one"), picture("pipe.png", "two"), picture("zero.png", "three")])
    for name in ("pipe.png", "zero.png"):
        (path / "images" / name).unlink(missing_ok=True)
    os.mkfifo(path / "images" / "pipe.png")
    (path / "images" / "zero.png").symlink_to("/dev/zero")
    folder = Folder(path, "train", "skip")
    folder.verify()
    assert folder.faults == [f"{name} cannot be read (it is no file)" for name in ("pipe.png", "zero.png")]


def test_nothing_left(make):
    path = make([picture("gone.png", "one"), picture("b.png", "", split="val")])
    with pytest.raises(UserError, match=r"no usable picture left: b\.png has an empty caption"):
        Folder(path, "val", "skip")
    folder = Folder(path, "train", "skip")
    with pytest.raises(UserError, match=r"no usable picture left: gone\.png is missing"):
        folder.verify()


def test_wrong_folders(make, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        Folder(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"neither captions\.json nor vqa\.json"):
        Folder(tmp_path, "train")
    (tmp_path / "captions.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="no folder images"):
        Folder(tmp_path, "train")
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"no split 'train'; .* none$"):
        Folder(tmp_path, "train")
    path = make([picture("a.png", "one"), picture("b.png", "two", split="test"), picture("c.png", "x", split="test")])
    with pytest.raises(UserError, match=r"no split 'val'; choose one of those it has: test \(2\), train \(1\)"):
        Folder(path, "val")
    with pytest.raises(UserError, match="on_error cannot be 'ignore'; choose fatal or skip"):
        Folder(path, "train", "ignore")


COUNTS = [  # pictures as the data's README counts them
    ("flickr8k", "train", 6000), ("flickr8k", "val", 1000), ("coco_vqa", "train", 2200), ("coco_vqa", "val", 300),
    ("daquar", "train", 714), ("daquar", "val", 80),
]  # fmt: skip


@pytest.mark.parametrize(("name", "split", "count"), COUNTS)
def test_real_photographs(name, split, count):
    path = PHOTOS / name
    if not path.is_dir():
        pytest.skip("shared/data, the real photographs, is not here")
    folder = Folder(path, split)
    assert len(folder) == count and not folder.faults
    if name == "flickr8k":
        assert all(len(record.captions) == 5 and not record.questions for record in folder.records)
    else:
        rows = [row for row in json.loads((path / "vqa.json").read_text()) if row["split"] == split]
        questions = [q for record in folder.records for q in record.questions]
        assert len(questions) == len({(row["image"], row["question"].strip()) for row in rows}) <= len(rows)
        assert sum(len(q.answers) for q in questions) == len(rows)
        assert {q.type for q in questions} == {row["question_type"] for row in rows}
    if split == "val":
        folder.verify()
        assert len(folder) == count
    item = folder[count - 1]
    assert item.image.size == ((295, 224) if name == "daquar" else (224, 224))
    assert 5 < np.asarray(item.image).std() < 128
