"""Captions and questions in their files: what is read, and what is refused by its place."""

import json

import pytest

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation
from dlip.data.batch import Question
from dlip.data.folders.annotations import read_captions, read_questions
from dlip.data.folders.images import ImageFiles

IMAGE = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}
ROW = {"image": "a.jpg", "question": "what?", "answers": ["cat"], "split": "train"}


def without(row: dict, key: str) -> dict:
    return {k: v for k, v in row.items() if k != key}


def captions(tmp_path, content) -> list[Annotation]:
    file = tmp_path / "captions.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (tmp_path / "images").mkdir(exist_ok=True)
    return list(read_captions(file, ImageFiles(tmp_path)))


def questions(tmp_path, content) -> list[Annotation]:
    file = tmp_path / "vqa.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return list(read_questions(file))


def test_the_writer_of_a_caption(tmp_path):
    sentences = [{"raw": "one", "writer": "human"}, {"raw": " two ", "writer": "m"}, {"raw": " ", "writer": "m"}]
    (about,) = captions(tmp_path, {"images": [{**IMAGE, "sentences": sentences}]})
    assert about.captions == ["one", "two"] and about.writers == {"two": "m"}
    assert repr(about) == repr(Annotation("a.jpg", "train", ["one", "two"], faults=about.faults))  # is hashed


def test_good_files(tmp_path):
    assert captions(tmp_path, {"dataset": "x", "images": [IMAGE]}) == [Annotation("a.jpg", "train", ["one"])]
    assert questions(tmp_path, [ROW]) == [Annotation("a.jpg", "train", questions=[Question("what?", ["cat"], "other")])]
    numbers = {**ROW, "answers": [2, 2.5, " 2 ", "", None]}
    assert questions(tmp_path, [numbers])[0].questions == [Question("what?", ["2", "2.5", "2"], "other")]
    with_bom = b"\xef\xbb\xbf" + json.dumps([ROW]).encode()
    assert questions(tmp_path, with_bom)[0].name == "a.jpg"


@pytest.mark.parametrize("content", [b"", b"{", b'{"images": [}', b"\xff\xfe\x00", b"\xe9\xe9"])
@pytest.mark.parametrize("read", [captions, questions])
def test_broken_json_is_one_error(tmp_path, read, content):
    with pytest.raises(UserError, match=r"\.json cannot be read as JSON"):
        read(tmp_path, content)


MALFORMED_CAPTIONS = [
    ([], "'images', a list"),
    ("text", "'images', a list"),
    ({"images": {}}, "'images', a list"),
    ({"annotations": []}, "'images', a list"),
    ({"images": [IMAGE, 3]}, r"images\[1\] needs 'filename'|images\[1\] needs 'filepath'"),
    ({"images": [without(IMAGE, "filename")]}, r"images\[0\] needs 'filename', a string"),
    ({"images": [without(IMAGE, "split")]}, r"images\[0\] needs 'split', a string"),
    ({"images": [without(IMAGE, "sentences")]}, r"images\[0\] needs 'sentences', a list"),
    ({"images": [IMAGE, {**IMAGE, "filename": 7}]}, r"images\[1\] needs 'filename', a string"),
    ({"images": [{**IMAGE, "sentences": ["one"]}]}, r"images\[0\], sentences needs 'raw', a string"),
    ({"images": [{**IMAGE, "sentences": [{"raw": 5}]}]}, r"images\[0\], sentences needs 'raw', a string"),
    (
        {"images": [{**IMAGE, "sentences": [{"raw": "one", "writer": 5}]}]},
        r"images\[0\], sentences needs 'writer', a string",
    ),
]


@pytest.mark.parametrize(("content", "message"), MALFORMED_CAPTIONS)
def test_malformed_captions(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        captions(tmp_path, content)


MALFORMED_QUESTIONS = [
    ({"questions": []}, "must be a list"),
    ([ROW, "text"], r"\[1\] needs 'image', a string"),
    ([without(ROW, "image")], r"\[0\] needs 'image', a string"),
    ([without(ROW, "question")], r"\[0\] needs 'question', a string"),
    ([without(ROW, "split")], r"\[0\] needs 'split', a string"),
    ([without(ROW, "answers")], r"\[0\] needs 'answers', a list"),
    ([{**ROW, "answers": "cat"}], r"\[0\] needs 'answers', a list"),
    ([{**ROW, "question_type": 3}], r"\[0\] needs 'question_type', a string"),
]


@pytest.mark.parametrize(("content", "message"), MALFORMED_QUESTIONS)
def test_malformed_questions(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        questions(tmp_path, content)


UNIX = ["../a.jpg", "x/../../a.jpg", "..", "/etc/a.jpg", "", "."]
WINDOWS = ["C:\\a.jpg", "c:a.jpg", "\\\\host\\share\\a.jpg", "..\\a.jpg"]


@pytest.mark.parametrize("name", UNIX + WINDOWS)
def test_images_outside_the_folder_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"vqa\.json, \[1\] names the image .* is outside images/"):
        questions(tmp_path, [ROW, {**ROW, "image": name}])
    with pytest.raises(UserError, match=r"captions\.json, images\[0\] names the image"):
        captions(tmp_path, {"images": [{**IMAGE, "filename": name}]})


@pytest.mark.parametrize("folder", ["..", "/etc", "x/../..", "C:\\x"])
def test_folders_outside_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match="is outside images/"):
        captions(tmp_path, {"images": [{**IMAGE, "filepath": folder}]})


def test_odd_names_inside_are_kept(tmp_path):
    names = ["..a.jpg", "a..b.jpg", "two words.jpg", "ünï.jpg", "x/y/z.jpg"]
    rows = [{**ROW, "image": name} for name in names]
    assert [about.name for about in questions(tmp_path, rows)] == names


@pytest.mark.parametrize(
    "split", ["/etc/train", "../../train", "nul\0", "bad\ud800", "te\x1b[31mst", "", ".hidden", "x" * 101]
)
def test_splits_that_cannot_name_a_file_are_refused(tmp_path, split):
    for read, content in ((captions, {"images": [IMAGE | {"split": split}]}), (questions, [ROW | {"split": split}])):
        with pytest.raises(UserError, match="the split name|'split'") as refused:
            read(tmp_path, content)
        assert str(refused.value).isprintable()
    assert captions(tmp_path, {"images": [IMAGE | {"split": "my train-2.a"}]})[0].split == "my train-2.a"
