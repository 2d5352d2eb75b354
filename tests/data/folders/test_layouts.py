"""Folders in the published layouts of COCO, NoCaps, Flickr30k (Karpathy's split) and VQA v2."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dlip import data
from dlip.common.errors import UserError
from dlip.data.batch import Question
from dlip.data.folders.images import image_files

TRAIN, VAL = "COCO_train2014_000000000009.jpg", "COCO_val2014_000000000042.jpg"


def paint(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(file)


def dump(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(images: dict[int, str], texts: list[tuple[int, str]]) -> dict:
    return {
        "images": [{"id": number, "file_name": name} for number, name in images.items()],
        "annotations": [{"image_id": number, "id": i, "caption": text} for i, (number, text) in enumerate(texts)],
    }


def captions(path: Path, split: str, on_error: str = "fatal") -> list[tuple[str, list[str]]]:
    dataset = data.open(path, split, on_error=on_error)
    dataset.verify()
    return [(about.name, about.captions) for about in dataset.annotations]


@pytest.mark.parametrize("folder", ["", "images/"])
def test_coco_captions(tmp_path, folder):
    """Annotations in their folder, images in the years' folders, beside it or in images/."""
    paint(tmp_path / folder / "train2014" / TRAIN, tmp_path / folder / "val2014" / VAL)
    dump(tmp_path / "annotations/captions_train2014.json", coco({9: TRAIN}, [(9, "one"), (9, " two \n")]))
    dump(tmp_path / "annotations/captions_val2014.json", coco({42: VAL}, [(42, "three")]))
    dump(tmp_path / "annotations/instances_train2014.json", {})  # part of the same archive
    assert data.splits(tmp_path) == ["train", "val"]
    assert captions(tmp_path, "train") == [(f"train2014/{TRAIN}", ["one", "two"])]
    assert captions(tmp_path, "val") == [(f"val2014/{VAL}", ["three"])]


def test_linked_folders_are_read(tmp_path):
    """Images often lie on another disk; a link back to where it is ends there."""
    paint(tmp_path / "disk" / TRAIN)
    dump(tmp_path / "set/captions_train2014.json", coco({9: TRAIN}, [(9, "one")]))
    (tmp_path / "set/train2014").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/again").symlink_to(tmp_path / "disk")
    assert captions(tmp_path / "set", "train") == [(f"train2014/{TRAIN}", ["one"])]
    assert image_files(tmp_path / "set") == [f"train2014/{TRAIN}"]


def test_coco_2017_in_one_folder(tmp_path):
    paint(tmp_path / "images/000000000139.jpg")
    dump(tmp_path / "captions_val2017.json", coco({139: "000000000139.jpg"}, [(139, "a room")]))
    assert captions(tmp_path, "val") == [("000000000139.jpg", ["a room"])]


def test_images_numbered_in_each_split(tmp_path):
    paint(tmp_path / "train2017/1.png", tmp_path / "val2017/1.png", tmp_path / "val2017/more/1.png")
    dump(tmp_path / "captions_val2017.json", coco({1: "1.png"}, [(1, "one")]))
    assert captions(tmp_path, "val") == [("val2017/1.png", ["one"])]
    dump(tmp_path / "captions_val2017.json", coco({1: "val2017/more/1.png"}, [(1, "one")]))
    assert captions(tmp_path, "val") == [("val2017/more/1.png", ["one"])]
    (tmp_path / "captions_val2017.json").rename(tmp_path / "captions_dev.json")
    dump(tmp_path / "captions_dev.json", coco({1: "1.png"}, [(1, "one")]))
    with pytest.raises(UserError, match=r"the image 1.png is both train2017/1.png and val2017/1.png in .*; name it"):
        captions(tmp_path, "val")


def test_coco_faults(tmp_path):
    paint(*(tmp_path / "images" / f"{name}.jpg" for name in "ab"))
    images = {1: "a.jpg", 2: "b.jpg", 3: "gone.jpg"}
    dump(tmp_path / "captions_train.json", coco(images, [(1, "one"), (1, " "), (3, "x"), (7, "y")]))
    dataset = data.open(tmp_path, "train", on_error="skip")
    dataset.verify()
    assert [about.name for about in dataset.annotations] == ["a.jpg"]
    assert dataset.faults == [
        "a.jpg has an empty caption", "b.jpg has no caption",
        f"7 has captions but is not among the images of {tmp_path / 'captions_train.json'}", "gone.jpg is missing",
    ]  # fmt: skip


def test_two_files_of_one_split_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    for year in (2014, 2017):
        dump(tmp_path / f"annotations/captions_train{year}.json", coco({}, []))
    with pytest.raises(
        UserError, match="captions_train2014.json and .*captions_train2017.json are both of the split train"
    ):
        data.splits(tmp_path)


def test_nocaps(tmp_path):
    paint(tmp_path / "images/0013ea2087020901.jpg")
    dump(tmp_path / "nocaps_val_4500_captions.json", coco({0: "0013ea2087020901.jpg"}, [(0, "a baby"), (0, "a child")]))
    assert data.splits(tmp_path) == ["val"]
    assert captions(tmp_path, "val") == [("0013ea2087020901.jpg", ["a baby", "a child"])]


def test_karpathys_split_of_coco_has_precedence(tmp_path):
    paint(tmp_path / "train2014" / TRAIN, tmp_path / "val2014" / VAL)
    rows = [("train2014", TRAIN, "train"), ("val2014", VAL, "restval")]
    images = [{"filepath": f, "filename": n, "split": s, "sentences": [{"raw": "x"}]} for f, n, s in rows]
    dump(tmp_path / "dataset_coco.json", {"images": images})
    dump(tmp_path / "annotations/captions_val2014.json", coco({42: VAL}, [(42, "three")]))
    assert [name for name, _ in captions(tmp_path, "train")] == [f"train2014/{TRAIN}", f"val2014/{VAL}"]


def test_karpathys_split_of_coco_in_one_folder(tmp_path):
    paint(tmp_path / "images" / VAL)
    sentences = {"sentences": [{"raw": "one"}], "split": "val"}
    dump(tmp_path / "dataset_coco.json", {"images": [{"filepath": "val2014", "filename": VAL, **sentences}]})
    assert captions(tmp_path, "val") == [(VAL, ["one"])]


def test_karpathys_split_of_flickr30k(tmp_path):
    paint(tmp_path / "flickr30k_images/2.jpg")
    images = [{"filename": "2.jpg", "split": "test", "sentences": [{"raw": "x"}]}]
    dump(tmp_path / "dataset_flickr30k.json", {"images": images})
    (tmp_path / "flickr30k_images.tar").touch()  # the images came in it
    assert captions(tmp_path, "test") == [("2.jpg", ["x"])]


def vqa2(path: Path, tag: str, rows: list[tuple[int, int, str, str, str]]) -> None:
    """The official pair of files, from (image, question, text, answer, type); nine of ten annotators agree."""
    questions = [{"image_id": image, "question_id": number, "question": text} for image, number, text, *_ in rows]
    annotations = [
        {
            "image_id": image, "question_id": number, "question_type": "what", "answer_type": kind,
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer if i else "other", "answer_id": i + 1} for i in range(10)],
        }
        for image, number, _, answer, kind in rows
    ]  # fmt: skip
    dump(path / f"v2_OpenEnded_mscoco_{tag}_questions.json", {"data_subtype": tag, "questions": questions})
    dump(path / f"v2_mscoco_{tag}_annotations.json", {"data_subtype": tag, "annotations": annotations[::-1]})


def test_vqa2(tmp_path):
    paint(tmp_path / "train2014" / TRAIN, tmp_path / "val2014" / VAL)
    vqa2(tmp_path, "train2014", [(9, 90, "What is it?", "net", "other"), (9, 91, "Is it?", "yes", "yes/no")])
    vqa2(tmp_path, "val2014", [(42, 420, "How many?", "2", "number")])
    dump(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": []})
    dump(tmp_path / "annotations/captions_train2014.json", coco({9: TRAIN}, [(9, "a net")]))
    (item,) = data.open(tmp_path, "train")
    assert item.captions == ["a net"]
    assert item.questions == [
        Question("What is it?", ["other", *["net"] * 9], "other"), Question("Is it?", ["other", *["yes"] * 9], "yes/no")
    ]  # fmt: skip
    assert data.splits(tmp_path) == ["train", "val"]
    assert data.open(tmp_path, "val").counts() == {"images": 1, "captions": 0, "questions": 1}


def test_vqa2_counts_a_question_asked_twice_twice(tmp_path):
    """By another ten annotators, as the official program does."""
    paint(tmp_path / "train2014" / TRAIN)
    vqa2(tmp_path, "train2014", [(9, 90, "What?", "net", "other"), (9, 91, "What?", "rope", "other")])
    (item,) = data.open(tmp_path, "train")
    assert [question.answers[1:] for question in item.questions] == [["net"] * 9, ["rope"] * 9]


def test_vqa2_on_images_of_2017(tmp_path):
    paint(tmp_path / "train2017/000000000009.jpg")
    vqa2(tmp_path, "train2014", [(9, 90, "What?", "net", "other")])
    assert [name for name, _ in captions(tmp_path, "train")] == ["train2017/000000000009.jpg"]


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("v2_mscoco_train2014_annotations.json", "but not its answers, v2_mscoco_train2014_annotations.json"),
        ("v2_OpenEnded_mscoco_train2014_questions.json", "but not its questions"),
    ],
)
def test_incomplete_vqa2_pair_names_the_missing_file(tmp_path, gone, message):
    (tmp_path / "images").mkdir()
    vqa2(tmp_path, "train2014", [(9, 90, "What?", "net", "other")])
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=message):
        data.open(tmp_path, "train")


def test_folder_without_images(tmp_path):
    dump(tmp_path / "annotations/captions_train2014.json", coco({9: TRAIN}, [(9, "one")]))
    with pytest.raises(UserError, match="has no folder images"):
        data.open(tmp_path, "train")
