"""Folders in the published layouts of COCO, NoCaps, Flickr30k (Karpathy's split) and VQA v2, and malformed ones."""

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


def captions(path: Path, split: str) -> list[tuple[str, list[str]]]:
    dataset = data.open(path, split)
    dataset.verify()
    return [(dataset.image_name(i), dataset[i].captions) for i in range(len(dataset))]


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


def test_coco_faults(tmp_path):
    paint(*(tmp_path / "images" / f"{name}.jpg" for name in "ab"))
    images = {1: "a.jpg", 2: "b.jpg", 3: "gone.jpg"}
    dump(tmp_path / "captions_train.json", coco(images, [(1, "one"), (1, " "), (3, "x"), (7, "y")]))
    dataset = data.open(tmp_path, "train", on_error="skip")
    dataset.verify()
    assert len(dataset) == 1 and [fault.split()[0] for fault in dataset.faults] == ["a.jpg", "b.jpg", "7", "gone.jpg"]
    dump(tmp_path / "captions_train2017.json", coco({}, []))
    with pytest.raises(UserError, match="captions_train.json.*captions_train2017.json"):
        data.splits(tmp_path)


def test_karpathys_splits(tmp_path):
    """They have precedence, restval is train, and COCO's images may lie in one folder."""
    paint(tmp_path / "train2014" / TRAIN, tmp_path / "val2014" / VAL, tmp_path / "flickr/flickr30k_images/2.jpg")
    rows = [("train2014", TRAIN, "train"), ("val2014", VAL, "restval"), ("", "x.jpg", "val")]
    images = [{"filepath": f, "filename": n, "split": s, "sentences": [{"raw": "x"}]} for f, n, s in rows]
    dump(tmp_path / "dataset_coco.json", {"images": images})
    dump(tmp_path / "annotations/captions_val2014.json", coco({42: VAL}, [(42, "three")]))
    assert [name for name, _ in captions(tmp_path, "train")] == [f"train2014/{TRAIN}", f"val2014/{VAL}"]
    paint(tmp_path / "one/images" / VAL)
    dump(tmp_path / "one/dataset_coco.json", {"images": [{**images[1], "split": "val"}]})
    assert captions(tmp_path / "one", "val") == [(VAL, ["x"])]
    flickr = [{"filename": "2.jpg", "split": "test", "sentences": [{"raw": "x"}]}]
    dump(tmp_path / "flickr/dataset_flickr30k.json", {"images": flickr})
    (tmp_path / "flickr/flickr30k_images.tar").touch()  # the images came in it
    assert captions(tmp_path / "flickr", "test") == [("2.jpg", ["x"])]


def vqa2(path: Path, tag: str, rows: list[tuple[int, int, str, str, str]]) -> None:
    """The official pair of files, from (image, question, text, answer, type); nine of ten annotators agree."""
    questions = [{"image_id": image, "question_id": number, "question": text} for image, number, text, *_ in rows]
    annotations = [
        {
            "question_id": number,
            "answer_type": kind,
            "answers": [{"answer": answer if i else "other", "answer_id": i + 1} for i in range(10)],
        }
        for _, number, _, answer, kind in rows
    ]
    dump(path / f"v2_OpenEnded_mscoco_{tag}_questions.json", {"data_subtype": tag, "questions": questions})
    dump(path / f"v2_mscoco_{tag}_annotations.json", {"data_subtype": tag, "annotations": annotations[::-1]})


def test_vqa2(tmp_path):
    paint(tmp_path / "train2014" / TRAIN, tmp_path / "val2017/000000000042.jpg")
    rows = [
        (9, 90, "What is it?", "net", "other"),
        (9, 91, "Is it?", "yes", "yes/no"),
        (9, 92, "Is it?", "no", "yes/no"),
    ]
    vqa2(tmp_path, "train2014", rows)
    vqa2(tmp_path, "val2014", [(42, 420, "How many?", "2", "number")])
    dump(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": []})
    dump(tmp_path / "annotations/captions_train2014.json", coco({9: TRAIN}, [(9, "a net")]))
    (item,) = data.open(tmp_path, "train")
    assert item.captions == ["a net"]
    assert item.questions == [  # one asked twice counts twice, as in the official program
        Question(text, ["other", *[answer] * 9], kind) for _, _, text, answer, kind in rows
    ]
    assert data.splits(tmp_path) == ["train", "val"]
    assert captions(tmp_path, "val") == [("val2017/000000000042.jpg", [])]
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(UserError, match="v2_mscoco_val2014_annotations.json"):
        data.splits(tmp_path)


# --- malformed files --------------------------------------------------------------------------------------------------

IMAGE = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}
ROW = {"image": "a.jpg", "question": "what?", "answers": ["cat"], "split": "train"}


def without(row: dict, key: str) -> dict:
    return {k: v for k, v in row.items() if k != key}


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("captions.json", "", "JSON"),
        ("captions.json", {"annotations": []}, "images"),
        ("captions.json", {"images": [without(IMAGE, "split")]}, "images.0.split"),
        ("captions.json", {"images": [{**IMAGE, "sentences": [{"raw": 5}]}]}, "images.0.sentences.0.raw"),
        ("vqa.json", {"questions": []}, "list"),
        ("vqa.json", [ROW, without(ROW, "answers")], "1.answers"),
        ("captions_train.json", {"images": [{"id": 1}], "annotations": []}, "images.0.file_name"),
        *(("vqa.json", [{**ROW, "split": split}], "0.split") for split in ("/etc/x", "nul\0", "", "x" * 101)),
        *(
            ("vqa.json", [{**ROW, "image": name}], "outside")
            for name in ("../a.jpg", "/etc/a.jpg", "", "c:a.jpg", "..\\a")
        ),
        *(("captions.json", {"images": [{**IMAGE, "filepath": name}]}, "outside") for name in ("..", "/etc", "C:\\x")),
    ],
)
def test_malformed_files_are_refused_by_place(tmp_path, file, content, named):
    paint(tmp_path / "images/a.jpg")
    dump(tmp_path / file, content)
    with pytest.raises(UserError, match=named):
        data.splits(tmp_path)
