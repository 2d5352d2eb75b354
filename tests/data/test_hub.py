"""Datasets that the `datasets` library has on this disk; no request to the hub."""

import io
import os
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dlip import data
from dlip.common.errors import UserError
from dlip.data.batch import Question
from dlip.data.hub import parse, read_rows
from dlip.data.shards.write import write_shards


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def table(**columns) -> datasets.Dataset:
    made = datasets.Dataset.from_dict(columns)
    for column in columns.keys() & {"image", "photo"}:
        made = made.cast_column(column, datasets.Image())
    return made


def images(count: int) -> list[dict]:
    return [{"bytes": png(i), "path": None} for i in range(count)]


def test_saved_by_the_library(tmp_path):
    """Usual column names; `validation` is val; a caption may be a list."""
    splits = {
        "train": table(image=images(3), text=[["one", "two"], ["three", " "], ["four"]]),
        "validation": table(image=images(1), text=[["five"]]),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    name = f"hub:{tmp_path}/set"
    assert data.splits(name) == ["train", "val"]
    dataset = data.open(name, "train", on_error="skip")
    dataset.verify()
    assert (dataset.name, dataset.faults) == ("set", ["set/train/1 has an empty caption"])
    assert [item.captions for item in dataset] == [["one", "two"], ["three"], ["four"]]
    assert [item.image.getpixel((0, 0)) for item in dataset] == [(i, 0, 0) for i in range(3)]
    assert dataset.counts() == {"images": 3, "captions": 4, "questions": 0}
    assert dataset.fingerprint() == data.open(name, "train", on_error="skip").fingerprint()
    assert dataset.fingerprint() != data.open(name, "val").fingerprint()
    assert {item.image_id for item in dataset}.isdisjoint(item.image_id for item in data.open(name, "val"))
    with pytest.raises(UserError, match="has no split 'test'; choose one of: train, val"):
        data.open(name, "test")


@pytest.mark.parametrize("how", ["file", "folder"])
def test_parquet_with_named_columns(tmp_path, how):
    made = table(photo=images(2), label=["one", "two"], text=["no", "no"])
    made.to_parquet(str(tmp_path / "train.parquet"))
    name = f"hub:{tmp_path}{'/train.parquet' if how == 'file' else ''}?image=photo&caption=label"
    assert [item.captions for item in data.open(name, "train")] == [["one"], ["two"]]
    write_shards(tmp_path / "shards", {"train": data.open(name, "train")})
    for actual, expected in zip(data.open(tmp_path / "shards", "train"), data.open(name, "train"), strict=True):
        assert (actual.captions, actual.image_id, actual.image.tobytes()) == (
            expected.captions, expected.image_id, expected.image.tobytes()
        )  # fmt: skip


def test_rows_of_one_image_are_joined(tmp_path):
    """VQA v2 as on the hub: one row per question, answers as dictionaries."""
    ten = [
        [{"answer": "net", "answer_id": 1}, {"answer": "bag", "answer_id": 2}],
        [{"answer": "2", "answer_id": 1}],
    ] * 2
    table(
        image=images(4), image_id=[9, 9, 7, 9], question=["what?", "how many?", "where?", "why?"], answers=ten,
        answer_type=["other", "number", "other", "other"], question_type=["x"] * 4, caption=["a", "a", "b", "c"],
    ).to_parquet(str(tmp_path / "train.parquet"))  # fmt: skip
    nine, seven = data.open(f"hub:{tmp_path}", "train")
    assert nine.captions == ["a", "c"] and seven.captions == ["b"]
    assert nine.questions == [
        Question("what?", ["net", "bag"], "other"), Question("how many?", ["2"], "number"),
        Question("why?", ["2"], "other"),
    ]  # fmt: skip


def test_forms_of_rows():
    assert read_rows("a", [{"caption": [{"raw": "one", "tokens": ["one"]}]}]).captions == ["one"]
    row = {"question": "q", "answers": {"answer": ["a", "b"], "id": [1, 2]}}
    assert read_rows("a", [row]).questions == [Question("q", ["a", "b"])]
    assert read_rows("a", [{"question": "q", "answers": 2}]).questions == [Question("q", ["2"])]
    row = {"question": ["p", "q"], "answers": ["a", ["b", "c"]]}
    assert read_rows("a", [row]).questions == [Question("p", ["a"]), Question("q", ["b", "c"])]
    assert read_rows("a", [row | {"answers": ["b"]}]).faults == ["a has 2 questions, but not as many answers"]
    assert read_rows("a", [{"question": " ", "answers": "a"}]).faults == ["a has an empty question"]
    assert read_rows("a", [{"question": "q", "answers": []}]).faults == ["a has no answer to 'q'"]
    assert read_rows("a", [{"caption": None}]).faults == ["a has no caption"]


def test_impossible_file_name(tmp_path):
    files = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "a\0b.png"}]
    datasets.Dataset.from_dict({"image": files, "text": list("ab")}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match=r"set/train/1 cannot be read \(embedded null byte\)"):
        data.open(f"hub:{tmp_path}/set", "train").verify()


@pytest.mark.parametrize("broken", ["text", "id"])
def test_text_that_is_not_utf8(tmp_path, broken):
    odd = pa.array([b"a\xc9"], pa.binary())
    columns = {"text": pa.array(["a"]), "id": pa.array(["a"])}
    columns[broken] = pa.Array.from_buffers(pa.string(), 1, odd.buffers())
    pq.write_table(pa.table({"image": pa.array(images(1)), **columns}), tmp_path / "set.parquet")
    with pytest.raises(UserError, match=r"set.parquet.id=id cannot be read \('utf-8' codec can't decode.*; write"):
        data.open(f"hub:{tmp_path}/set.parquet?id=id", "train")


def test_broken_images(tmp_path):
    bad = [{"bytes": png(0), "path": None}, {"bytes": b"text", "path": None}, {"bytes": None, "path": "/no/where.png"}]
    made = datasets.Dataset.from_dict({"image": bad, "text": list("abc")})
    made.save_to_disk(str(tmp_path / "set"))
    name = f"hub:{tmp_path}/set"
    with pytest.raises(UserError, match="2 faults: set/train/1 cannot be read .*; set/train/2 cannot be read"):
        data.open(name, "train").verify()
    dataset = data.open(name, "train", on_error="skip")
    dataset.verify()
    assert [item.captions for item in dataset] == [["a"]] and len(dataset.faults) == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?caption=words", r"has no column 'words'; choose one of: image, label$"),
        ("", r"has no usual columns of captions, .* of: image, label$"),
        ("?color=red", "has the unknown option 'color'; choose one of: image, caption"),
        ("?image=label&caption=label", "holds no images|cannot be read"),
    ],
)
def test_missing_columns(tmp_path, query, message):
    table(image=images(1), label=["x"]).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(UserError, match=message):
        _ = data.open(f"hub:{tmp_path}{query}", "train")[0]


def test_names():
    assert parse("hub:nlphuji/flickr30k?image=img&config=TEST") == (
        "nlphuji/flickr30k",
        {"image": "img", "config": "TEST"},
    )
    with pytest.raises(UserError, match="names no dataset"):
        parse("hub:")


def test_dataset_that_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match=r"the dataset .*nothing.* cannot be loaded \(.+\); check its name"):
        data.open(f"hub:{tmp_path}/nothing", "train")


def test_malformed_table(tmp_path):
    (tmp_path / "train.csv").write_text("image,text\na.png,one\nb.png,two,three\n")
    with pytest.raises(UserError, match=r"train.csv cannot be loaded \(.*Expected 2 fields in line 3.*; correct its"):
        data.open(f"hub:{tmp_path}/train.csv", "train")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'dlip\[hub\]'"):
        data.splits("hub:any/thing")


def test_rows_reach_no_file_outside_the_dataset(tmp_path):
    (tmp_path / "set").mkdir()
    for folder in (tmp_path, tmp_path / "set"):
        (folder / "a.png").write_bytes(png(7))
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "a.png")
    names = [str(tmp_path / "set" / "a.png"), str(tmp_path / "a.png"), f"{tmp_path}/set/../a.png", "/dev/zero",
             str(tmp_path / "set" / "link.png")]  # fmt: skip
    made = datasets.Dataset.from_dict({"image": names, "text": list("abcde")})
    made.to_parquet(str(tmp_path / "set" / "train.parquet"))
    dataset = data.open(f"hub:{tmp_path}/set/train.parquet", "train", on_error="skip")
    dataset.verify()
    assert [item.captions for item in dataset] == [["a"]] and len(dataset.faults) == 4
    assert all("there is no such file in the dataset's own folders" in problem for problem in dataset.faults)


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_paths_beside_the_rows(suffix, separator, tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    (table := tmp_path / f"train.{suffix}").write_text("image,text\na.png,one\n../b.png,two\n".replace(",", separator))
    dataset = data.open(f"hub:{table}", "train", on_error="skip")
    dataset.verify()
    assert [item.captions for item in dataset] == [["one"]] and len(dataset.faults) == 1
    before = dataset.fingerprint()
    os.utime(tmp_path / "a.png", (0, 0))
    assert dataset.fingerprint() != before  # caches are named by it


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_answers_that_read_like_missing_ones_are_kept(suffix, separator, tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    rows = "image,question,answer\na.png,what is on it?,None\na.png,what letters?,NA\n"
    (tmp_path / f"t.{suffix}").write_text(rows.replace(",", separator))
    (item,) = data.open(f"hub:{tmp_path / 't'}.{suffix}", "train")
    assert [question.answers for question in item.questions] == [["None"], ["NA"]]


def test_counts_beside_missing_answers_stay_whole(tmp_path):
    """pandas reads such a column as floats."""
    (tmp_path / "a.png").write_bytes(png(7))
    (tmp_path / "t.csv").write_text("image,caption,question,answers\na.png,,how many?,3\na.png,one,,\n")
    (item,) = data.open(f"hub:{tmp_path / 't.csv'}", "train")
    assert item.questions[0].answers == ["3"]


def test_rows_without_an_id_are_images_of_their_own(tmp_path):
    table(image=images(3), filename=["a", None, None], caption=["x", "y", "z"]).to_parquet(
        str(tmp_path / "train.parquet")
    )
    assert [item.captions for item in data.open(f"hub:{tmp_path}", "train")] == [["x"], ["y"], ["z"]]


def test_rows_that_name_one_file_are_one_image(tmp_path):
    """As in Kaggle's Flickr8k; other captions of an image would else be its negatives."""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "train.csv").write_text("image,caption\n0.png,one\n1.png,two\n0.png,three\n")
    dataset = data.open(f"hub:{tmp_path}/train.csv", "train")
    dataset.verify()
    assert [item.captions for item in dataset] == [["one", "three"], ["two"]]
    assert [item.image.getpixel((0, 0))[0] for item in dataset] == [0, 1]
