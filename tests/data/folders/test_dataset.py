"""A folder of images with captions and questions: what is joined, quarantined, verified and fingerprinted."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlip import data
from dlip.common.errors import UserError
from dlip.data.batch import Question
from dlip.data.folders.dataset import Folder, image_id_from_name, splits
from tests.helpers import ROOT

PHOTOS = ROOT.parent / "shared" / "data"


def image(name: str, *captions: str, split: str = "train", **more) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


def ask(name: str, text: str, *answers: str, split: str = "train", **more) -> dict:
    return {"image": name, "question": text, "answers": list(answers), "split": split, **more}


@pytest.fixture
def make(tmp_path):
    """Write a folder with a 4 x 3 image for each name, save those with "gone" in it."""

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
    return [about.name for about in folder.annotations]


def test_captions(make):
    path = make([image("a.png", "one", " two "), image("b.png", "x", split="val"), image("c.png", "y")])
    folder = Folder(path, "train")
    assert (folder.name, folder.split, len(folder), folder.faults) == (path.name, "train", 2, [])
    item = folder[0]
    assert (item.captions, item.questions, item.image_id) == (["one", "two"], [], image_id_from_name("a.png"))
    assert (item.image.mode, item.image.size) == ("RGB", (4, 3))
    assert [i.captions for i in folder] == [["one", "two"], ["y"]]
    with pytest.raises(IndexError):
        folder[2]


def test_restval_is_train(make):
    path = make([image("a.png", "one", split="restval"), image("b.png", "two")])
    assert names(Folder(path, "train")) == ["a.png", "b.png"]
    with pytest.raises(UserError, match=r"no split 'restval'; choose one of: train \(2\)"):
        Folder(path, "restval")


def test_questions_are_grouped_by_image_and_merged(make):
    path = make(vqa=[
        ask("a.png", "what?", "cat", question_type="object"), ask("b.png", "where?", "here"),
        ask("a.png", "how many?", "1", " ", "2"), ask("a.png", "what?", "dog"), ask("b.png", "what?", "cow"),
    ])  # fmt: skip
    a, b = Folder(path, "train")
    assert a.questions == [Question("what?", ["cat", "dog"], "object"), Question("how many?", ["1", "2"], "other")]
    assert b.questions == [Question("where?", ["here"]), Question("what?", ["cow"])]


def test_captions_and_questions_are_joined_by_image(make):
    path = make(
        [image("a.png", "one"), image("v.png", "x", split="val"), image("c.png", "two")],
        [ask("d.png", "d?", "1"), ask("c.png", "c?", "2"), ask("./a.png", "a?", "3"), ask("d.png", "e?", "4")],
    )
    folder = Folder(path, "train")
    assert names(folder) == ["a.png", "c.png", "d.png"]
    assert [(r.captions, [q.text for q in r.questions]) for r in folder.annotations] == [
        (["one"], ["a?"]), (["two"], ["c?"]), ([], ["d?", "e?"])
    ]  # fmt: skip
    assert list(folder.texts(3)) == ["one", "a?", "3", "two", "c?", "2", "d?", "1", "e?", "4"]


def test_splits_and_counts(make):
    path = make(
        [image("a.png", "one", "two", split="restval"), image("b.png", "x", split="val")],
        [ask("a.png", "a?", "1"), ask("a.png", "a?", "2"), ask("c.png", "c?", "3", split="test")],
    )
    assert splits(path) == ["test", "train", "val"]
    assert Folder(path, "train").counts() == {"images": 1, "captions": 2, "questions": 1}
    assert Folder(path, "test").counts() == {"images": 1, "captions": 0, "questions": 1}
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        splits(path / "nowhere")


def test_filepath_is_the_folder(make):
    path = make([image("a.png", "one", filepath="val2014")], [ask("val2014/a.png", "a?", "1")])
    assert [(r.name, len(r.questions)) for r in Folder(path, "train").annotations] == [("val2014/a.png", 1)]


def test_image_ids_are_stable_and_distinct():
    assert image_id_from_name("a.png") == 7952145634355070  # stored in records and caches
    ids = {image_id_from_name(f"{i}.jpg") for i in range(20_000)}
    assert len(ids) == 20_000 and 0 <= min(ids) and 2**52 < max(ids) < 2**53


def test_images_open_lazily(make):
    path = make([image("a.png", "one"), image("gone.png", "two")])
    folder = Folder(path, "train")
    assert len(folder) == 2 and folder[0].captions == ["one"]
    with pytest.raises(UserError, match=r"no image .*gone\.png"):
        folder[1]


TEXT_FAULTS = [
    ([image("bad.png", "", "fine")], None, "bad.png has an empty caption", True),
    ([image("bad.png", " \n")], None, "bad.png has an empty caption", False),
    ([image("bad.png")], None, "bad.png has no caption", False),
    ([{"filename": "bad.png", "split": "train", "sentences": [{}]}], None, "bad.png has an empty caption", False),
    ([], [ask("bad.png", "why?")], "bad.png has no answer to 'why?'", False),
    ([], [ask("bad.png", "why?", "", " ")], "bad.png has no answer to 'why?'", False),
    ([], [ask("bad.png", " ", "so"), ask("bad.png", "b?", "c")], "bad.png has an empty question", True),
]


@pytest.mark.parametrize(("captions", "vqa", "fault", "kept"), TEXT_FAULTS)
def test_faulty_texts_are_quarantined_or_fatal(make, captions, vqa, fault, kept):
    path = make([image("a.png", "one"), *captions], vqa)
    with pytest.raises(UserError) as caught:
        Folder(path, "train")
    assert f"has 1 fault: {fault}: correct the data" in str(caught.value)
    folder = Folder(path, "train", on_error="skip")
    assert folder.faults == [fault]
    assert names(folder) == ["a.png"] + ["bad.png"] * kept


def test_images_without_texts_are_kept_on_request(make):
    path = make([image("a.png"), image("b.png", "one"), image("c.png", " "), image("v.png", split="val")])
    assert names(data.open(path, "train", on_error="skip")) == ["b.png"]
    folder = data.open(path, "train", on_error="skip", uncaptioned=True)
    assert names(folder) == ["a.png", "b.png", "c.png"] and folder.faults == ["c.png has an empty caption"]
    assert names(data.open(path, "val", uncaptioned=True)) == ["v.png"]


@pytest.mark.parametrize("below", ["images", "."])
def test_a_folder_of_images_alone_is_read_on_request(tmp_path, below):
    for name in ("b/one.JPG", "a.png", "notes.txt", "folder.png/x.webp", ".trash/c.png", "__MACOSX/._a.png", "._a.png"):
        file = tmp_path / below / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(file, "PNG")
    with pytest.raises(UserError, match="neither captions.json nor vqa.json"):
        data.splits(tmp_path)
    assert data.splits(tmp_path, uncaptioned=True) == ["train"]
    folder = data.open(tmp_path, "train", uncaptioned=True)
    assert names(folder) == ["a.png", "b/one.JPG", "folder.png/x.webp"] and folder[1].captions == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither captions.json nor vqa.json"):
        data.splits(tmp_path / "empty", uncaptioned=True)


def test_faults_of_another_split_are_ignored(make):
    path = make([image("a.png", "one"), image("b.png", "", split="val")])
    assert Folder(path, "train").faults == []


def test_image_of_two_splits_stays_in_its_first(make):
    path = make(
        [image("a.png", "one", split="val"), image("b.png", "two")],
        [ask("a.png", "a?", "1"), ask("a.png", "b?", "2"), ask("b.png", "c?", "3")],
    )
    with pytest.raises(UserError, match=r"a\.png is in the split val as well"):
        Folder(path, "train")
    folder = Folder(path, "train", "skip")
    assert (names(folder), folder.faults) == (["b.png"], ["a.png is in the split val as well"])
    assert Folder(path, "val")[0].questions == []


def test_many_faults_are_counted_and_the_first_listed(make):
    path = make([image(f"{i}.png", "") for i in range(9)] + [image("a.png", "one")])
    with pytest.raises(UserError) as caught:
        Folder(path, "train")
    assert "9 faults" in str(caught.value) and "2.png" in str(caught.value) and "3.png" not in str(caught.value)
    assert len(Folder(path, "train", "skip").faults) == 9


def spoil(path: Path) -> dict[str, str]:
    """Images that cannot be used -> their fault."""
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


def test_verify_finds_bad_images(make):
    path = make([image("a.png", "one")], [ask("b.png", "b?", "c")])
    bad = spoil(path)
    rows = [image(name, "one") for name in ("a.png", *bad)]
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


def test_pipe_and_device_are_not_read(make):
    """Reading either would never end."""
    path = make([image("a.png", "one"), image("pipe.png", "two"), image("zero.png", "three")])
    for name in ("pipe.png", "zero.png"):
        (path / "images" / name).unlink(missing_ok=True)
    os.mkfifo(path / "images" / "pipe.png")
    (path / "images" / "zero.png").symlink_to("/dev/zero")
    folder = Folder(path, "train", "skip")
    folder.verify()
    assert folder.faults == [f"{name} cannot be read (it is not a file)" for name in ("pipe.png", "zero.png")]


def test_no_usable_image_left(make):
    path = make([image("gone.png", "one"), image("b.png", "", split="val")])
    with pytest.raises(UserError, match=r"no usable image left: b\.png has an empty caption"):
        Folder(path, "val", "skip")
    folder = Folder(path, "train", "skip")
    with pytest.raises(UserError, match=r"no usable image left: gone\.png is missing"):
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
    path = make([image("a.png", "one"), image("b.png", "two", split="test"), image("c.png", "x", split="test")])
    with pytest.raises(UserError, match=r"no split 'val'; choose one of: test \(2\), train \(1\)"):
        Folder(path, "val")
    with pytest.raises(UserError, match="on_error cannot be 'ignore'; choose fatal or skip"):
        Folder(path, "train", "ignore")


COUNTS = [  # images, as counted in the data's README
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
        assert all(len(about.captions) == 5 and not about.questions for about in folder.annotations)
    else:
        rows = [row for row in json.loads((path / "vqa.json").read_text()) if row["split"] == split]
        questions = [q for about in folder.annotations for q in about.questions]
        assert len(questions) == len({(row["image"], row["question"].strip()) for row in rows}) <= len(rows)
        assert sum(len(q.answers) for q in questions) == len(rows)
        assert {q.type for q in questions} == {row["question_type"] for row in rows}
    if split == "val":
        folder.verify()
        assert len(folder) == count
    item = folder[count - 1]
    assert item.image.size == ((295, 224) if name == "daquar" else (224, 224))
    assert 5 < np.asarray(item.image).std() < 128


def test_the_fingerprint_changes_with_texts_and_images(make):
    """Caches are named by it, and a resumed run warns by it."""
    path = make([image("a.png", "one"), image("b.png", "two")], [ask("a.png", "what?", "cat")])
    file, seen = path / "images" / "b.png", [Folder(path, "train").fingerprint()]
    assert Folder(path, "train").fingerprint() == seen[0]

    def captions(*rows: dict) -> None:
        (path / "captions.json").write_text(json.dumps({"images": rows}))

    def larger() -> None:
        before = file.stat().st_mtime_ns
        Image.new("RGB", (40, 30), "red").save(file)
        os.utime(file, ns=(before, before))

    for change in (
        lambda: captions(image("a.png", "one"), image("b.png", "three")),
        lambda: (path / "vqa.json").write_text(json.dumps([ask("a.png", "what?", "dog")])),
        larger,
        lambda: os.utime(file, (0, 0)),
        lambda: captions(image("a.png", "one")),
    ):
        change()
        seen.append(Folder(path, "train").fingerprint())
    assert len(set(seen)) == len(seen)
