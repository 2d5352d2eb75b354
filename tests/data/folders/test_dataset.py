"""A folder of images with captions and questions: what is joined, skipped, verified, fingerprinted and written."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlip import data
from dlip.common.errors import UserError
from dlip.data.batch import Question
from dlip.data.folders.dataset import Folder, splits
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes


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
    return [folder.image_name(i) for i in range(len(folder))]


def test_questions_are_grouped_by_image_and_merged(make):
    rows = [ask("a.png", "what?", "cat", question_type="object"), ask("b.png", "where?", "here")]
    rows += [ask("a.png", "how many?", 1, " ", "2"), ask("a.png", "what?", "dog"), ask("b.png", "what?", "cow")]
    a, b = Folder(make(vqa=rows), "train")
    assert a.questions == [Question("what?", ["cat", "dog"], "object"), Question("how many?", ["1", "2"], "other")]
    assert b.questions == [Question("where?", ["here"]), Question("what?", ["cow"])]


def test_captions_and_questions_are_joined_by_image(make):
    path = make(
        [image("a.png", "one"), image("v.png", "x", split="val"), image("c.png", "two", split="restval")],
        [ask("d.png", "d?", "1"), ask("c.png", "c?", "2"), ask("./a.png", "a?", "3"), ask("d.png", "e?", "4")],
    )
    folder = Folder(path, "train")
    assert names(folder) == ["a.png", "c.png", "d.png"] and splits(path) == ["train", "val"]
    assert list(folder.texts(3)) == ["one", "a?", "3", "two", "c?", "2", "d?", "1", "e?", "4"]
    assert folder.counts() == {"images": 3, "captions": 2, "questions": 4}


TEXT_FAULTS = [
    ([image("bad.png", "", "fine")], None, "bad.png has an empty caption", True),
    ([image("bad.png", " \n")], None, "bad.png has an empty caption", False),
    ([image("bad.png")], None, "bad.png has no caption", False),
    ([], [ask("bad.png", "why?", "", " ")], "bad.png has no answer to 'why?'", False),
    ([], [ask("bad.png", " ", "so"), ask("bad.png", "b?", "c")], "bad.png has an empty question", True),
]


@pytest.mark.parametrize(("captions", "vqa", "fault", "kept"), TEXT_FAULTS)
def test_faulty_texts_are_skipped_or_fatal(make, captions, vqa, fault, kept):
    path = make([image("a.png", "one"), image("v.png", "", split="val"), *captions], vqa)
    with pytest.raises(UserError, match="1 fault: bad.png"):
        Folder(path, "train")
    folder = Folder(path, "train", on_error="skip")
    assert folder.faults == [fault]
    assert names(folder) == ["a.png"] + ["bad.png"] * kept
    with pytest.raises(UserError, match="v.png"):
        Folder(path, "val", on_error="skip")  # nothing is left


def test_images_without_texts_are_kept_on_request(make):
    path = make([image("a.png"), image("b.png", "one"), image("c.png", " "), image("v.png", split="val")])
    assert names(data.open(path, "train", on_error="skip")) == ["b.png"]
    folder = data.open(path, "train", on_error="skip", uncaptioned=True)
    assert names(folder) == ["a.png", "b.png", "c.png"] and folder.faults == ["c.png has an empty caption"]
    assert names(data.open(path, "val", uncaptioned=True)) == ["v.png"]


@pytest.mark.parametrize("below", ["images", "."])
def test_a_folder_of_images_alone_is_read_on_request(tmp_path, below):
    for name in ("b/one.JPG", "a.png", "notes.txt", ".trash/c.png", "__MACOSX/._a.png", "._a.png"):
        file = tmp_path / below / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(file, "PNG")
    with pytest.raises(UserError):
        data.splits(tmp_path)
    assert data.splits(tmp_path, uncaptioned=True) == ["train"]
    folder = data.open(tmp_path, "train", uncaptioned=True)
    assert names(folder) == ["a.png", "b/one.JPG"] and folder[1].captions == []


def test_image_of_two_splits_stays_in_its_first(make):
    path = make(
        [image("a.png", "one", split="val"), image("b.png", "two")],
        [ask("a.png", "a?", "1"), ask("a.png", "b?", "2"), ask("b.png", "c?", "3")],
    )
    folder = Folder(path, "train", "skip")
    assert (names(folder), folder.faults) == (["b.png"], ["a.png is in the split val as well"])
    assert Folder(path, "val")[0].questions == []


def test_verify_finds_bad_images(make):
    bad = ["gone.png", "text.jpg", "empty.png", "folder.png", "pipe.png", "zero.png", "nul\0.png", "long" * 99]
    path = make([image("a.png", "one")], [ask("b.png", "b?", "c")])
    images = path / "images"
    (images / "text.jpg").write_bytes(b"<html>404</html>")
    (images / "empty.png").touch()
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")  # reading it, or the device, would never end
    (images / "zero.png").symlink_to("/dev/zero")
    (path / "captions.json").write_text(json.dumps({"images": [image(name, "one") for name in ("a.png", *bad)]}))
    with pytest.raises(UserError, match=f"{len(bad)} faults: gone.png"):
        Folder(path, "train").verify()
    folder = Folder(path, "train", "skip")
    assert len(folder.verify()) == len(bad) == len(folder.verify())
    assert all(fault.startswith(name) for fault, name in zip(folder.faults, bad, strict=True))
    assert names(folder) == ["a.png", "b.png"] and [item.image.size for item in folder] == [(4, 3)] * 2


def test_wrong_folders(make, tmp_path):
    for expected, content in ((r"nowhere", None), (r"captions\.json", None), ("images", '{"images": []}')):
        if content:
            (tmp_path / "captions.json").write_text(content)
        with pytest.raises(UserError, match=expected):
            Folder(tmp_path / "nowhere" if expected == "nowhere" else tmp_path, "train")
    path = make([image("a.png", "one"), image("b.png", "two", split="test"), image("c.png", "x", split="test")])
    with pytest.raises(UserError, match=r"test \(2\), train \(1\)"):
        Folder(path, "val")


def test_the_fingerprint_changes_with_texts_and_images(make):
    """Caches are named by it, and a resumed run warns by it."""
    path = make([image("a.png", "one"), image("b.png", "two")], [ask("a.png", "what?", "cat")])
    file, seen = path / "images" / "b.png", [Folder(path, "train").fingerprint()]
    assert Folder(path, "train").fingerprint() == seen[0]

    def captions(*rows: dict) -> None:
        (path / "captions.json").write_text(json.dumps({"images": rows}))

    for change in (
        lambda: captions(image("a.png", "one"), image("b.png", "three")),
        lambda: (path / "vqa.json").write_text(json.dumps([ask("a.png", "what?", "dog")])),
        lambda: os.utime(file, (0, 0)),
        lambda: captions(image("a.png", "one")),
    ):
        change()
        seen.append(Folder(path, "train").fingerprint())
    assert len(set(seen)) == len(seen)


def test_written_folder_reads_back_equal(tmp_path):
    for size in (4, 3):  # the second replaces the first
        write_folder(tmp_path, {"train": Scenes("train-small", size=size), "test": Scenes("test", size=2)})
    scenes, back = Scenes("train-small", size=3), data.open(tmp_path, "train")
    assert data.splits(tmp_path) == ["test", "train"]
    for original, copy in zip(scenes, back, strict=True):
        assert np.array_equal(original.image, np.asarray(copy.image)) and original.captions == copy.captions
        # equal questions of one image are merged on reading
        first, second = ({q.text: (q.answers[0], q.type) for q in item.questions} for item in (original, copy))
        assert first == second
    written = back.annotations[1].captions[0]
    back.annotations[1].writers[written] = "org/writer"
    write_folder(tmp_path / "again", {"train": back})
    assert [item.writers for item in data.open(tmp_path / "again", "train")] == [{}, {written: "org/writer"}, {}]
