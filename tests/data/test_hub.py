"""What the library `datasets` reads: tables, shards and streams on this disk; no request to the hub."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch

from dlip import data
from dlip.common.errors import UserError
from dlip.data.batch import Question
from dlip.data.collate import Collate
from dlip.data.hub.load import parse
from dlip.data.hub.rows import read_rows
from dlip.data.hub.stream import Stream
from dlip.data.scenes.dataset import Scenes
from dlip.models.med import Med
from dlip.training.config import TrainConfig
from dlip.training.loop import train
from dlip.vlm import VLM
from tests.data.helpers import encoded, write_shards, write_tar


def table(**columns) -> datasets.Dataset:
    made = datasets.Dataset.from_dict(columns)
    for column in columns.keys() & {"image", "photo"}:
        made = made.cast_column(column, datasets.Image())
    return made


def images(count: int) -> list[dict]:
    return [{"bytes": encoded(i), "path": None} for i in range(count)]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_saved_by_the_library(tmp_path):
    """Usual column names; `validation` is val; a caption may be a list."""
    splits = {
        "train": table(image=images(4), text=[["one", "two"], ["three", " "], ["four"], [" "]]),
        "validation": table(image=images(1), text=[["five"]]),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    name = f"hub:{tmp_path}/set"
    assert data.splits(name) == ["train", "val"]
    dataset = data.open(name, "train", on_error="skip")
    dataset.verify()
    assert dataset.faults == ["set/train/1 has an empty caption", "set/train/3 has an empty caption"]
    assert [item.captions for item in dataset] == [["one", "two"], ["three"], ["four"]]
    assert [item.image.getpixel((0, 0))[0] for item in dataset] == [0, 1, 2]
    assert dataset.counts() == {"images": 3, "captions": 4, "questions": 0} and dataset.fields == {"captions"}
    val = data.open(name, "val")
    assert {item.image_id for item in dataset}.isdisjoint(item.image_id for item in val)
    assert dataset.fingerprint() != val.fingerprint() == data.open(name, "val").fingerprint()
    with pytest.raises(UserError, match="test"):
        data.open(name, "test")


@pytest.mark.parametrize("place", ["", "/train.parquet"])
def test_parquet_with_named_columns(tmp_path, place):
    table(photo=images(2), label=["one", "two"], text=["no", "no"]).to_parquet(str(tmp_path / "train.parquet"))
    name = f"hub:{tmp_path}{place}?image=photo&caption=label"
    assert [item.captions for item in data.open(name, "train")] == [["one"], ["two"]]


def test_rows_of_one_image_are_joined(tmp_path):
    """VQA v2 as on the hub: one row per question, answers as dictionaries."""
    ten = [[{"answer": "net", "answer_id": 1}, {"answer": "bag", "answer_id": 2}], [{"answer": "2", "answer_id": 1}]]
    table(
        image=images(4),
        image_id=[9, 9, 7, 9],
        question=["what?", "how many?", "where?", "why?"],
        answers=ten * 2,
        answer_type=["other", "number", "other", "other"],
        question_type=["x"] * 4,
        caption=["a", "a", "b", "c"],
    ).to_parquet(str(tmp_path / "train.parquet"))
    nine, seven = data.open(f"hub:{tmp_path}", "train")
    assert nine.captions == ["a", "c"] and seven.captions == ["b"]
    assert [(q.text, q.answers, q.type) for q in nine.questions] == [
        ("what?", ["net", "bag"], "other"),
        ("how many?", ["2"], "number"),
        ("why?", ["2"], "other"),
    ]


def test_forms_of_rows():
    assert read_rows("a", [{"caption": [{"raw": "one", "tokens": ["one"]}]}]).captions == ["one"]
    row = {"question": "q", "answers": {"answer": ["a", "b"], "id": [1, 2]}}
    assert read_rows("a", [row]).questions == [Question("q", ["a", "b"])]
    assert read_rows("a", [{"question": "q", "answers": 2.0}]).questions == [Question("q", ["2"])]
    row = {"question": ["p", "q"], "answers": ["a", ["b", "c"]]}
    assert read_rows("a", [row]).questions == [Question("p", ["a"]), Question("q", ["b", "c"])]
    for faulty in (row | {"answers": ["b"]}, {"question": " ", "answers": "a"}, {"question": "q", "answers": []}, {}):
        assert len(read_rows("a", [faulty]).faults) == 1


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t"), ("txt", ",")])
def test_tables_with_images_beside_them(suffix, separator, tmp_path):
    """As Kaggle's Flickr8k: rows of one file are one image. An answer may read like a missing value."""
    (folder := tmp_path / "Images").mkdir()
    (folder / "a.png").write_bytes(encoded(7))
    (tmp_path / "secret.png").write_bytes(encoded(8))
    rows = "image,caption,question,answer\na.png,one,what letters?,NA\na.png,two,,\n../../secret.png,three,,\n"
    (tmp_path / f"captions.{suffix}").write_text(rows.replace(",", separator))
    dataset = data.open(tmp_path, "train", on_error="skip")
    dataset.verify()
    (item,) = dataset
    assert item.captions == ["one", "two"] and item.questions == [Question("what letters?", ["NA"])]
    assert len(dataset.faults) == 1 and "secret" in dataset.faults[0]  # rows reach no file outside the folder


def test_data_without_splits_get_them_by_image(tmp_path):
    """Of each ten images; two rows of one image stay together."""
    for i in range(20):
        (tmp_path / f"{i:02}.png").write_bytes(encoded(i))
    rows = "".join(f"{i:02}.png,{text}\n" for text in ("one", "two") for i in range(20))
    (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
    assert data.splits(tmp_path) == ["test", "train", "val"]
    with pytest.warns(UserWarning, match="splits"):
        parts = {split: data.open(tmp_path, split) for split in data.splits(tmp_path)}
    assert {split: len(part) for split, part in parts.items()} == {"train": 16, "val": 2, "test": 2}
    assert len({part.image_name(i) for part in parts.values() for i in range(len(part))}) == 20
    assert all(example.captions == ["one", "two"] for part in parts.values() for example in part)
    (tmp_path / "captions.csv").rename(tmp_path / "train.csv")
    assert data.splits(tmp_path) == ["train"] and len(data.open(tmp_path, "train")) == 20


def test_image_folder_with_metadata(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "zero"}\n{"file_name": "1.png", "text": "one"}\n'
    )
    assert {item.image.getpixel((0, 0))[0]: item.captions for item in data.open(tmp_path, "train")} == {
        0: ["zero"],
        1: ["one"],
    }


@pytest.mark.parametrize(
    ("query", "named"),
    [("?caption=words", "words"), ("", "label"), ("?color=red", "color"), ("?image=label&caption=label", "label")],
)
def test_wrong_columns(tmp_path, query, named):
    table(image=images(1), label=["x"]).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(UserError, match=named):
        data.open(f"hub:{tmp_path}{query}", "train").verify()


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("image,text\na.png,one\nb.png,two,three\n")
    (tmp_path / "cut").mkdir()
    whole = write_tar(tmp_path / "whole.tar", {"a.jpg": encoded(1, "JPEG"), "a.txt": "one"}).read_bytes()
    (tmp_path / "cut" / "train.tar").write_bytes(whole[:700])
    for name in (tmp_path / "train.csv", f"hub:{tmp_path}/nothing", tmp_path / "cut", tmp_path / "gone-{0..3}.tar"):
        with pytest.raises(UserError, match=Path(name).name.partition("{")[0].removeprefix("hub:")):
            data.open(name, "train")
    with pytest.raises(UserError, match="hub:"):
        parse("hub:")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="datasets"):
        data.splits("hub:any/thing")


# --- shards -----------------------------------------------------------------------------------------------------------


def test_samples_of_shards(tmp_path):
    write_tar(
        tmp_path / "train-00000.tar",
        {
            "a.jpg": encoded(1, "JPEG"),
            "a.json": {"captions": ["x", "y"], "image_id": 3, "questions": []},
            "b.png": encoded(2),
            "b.txt": "one\ntwo\n",
            "c.jpg": b"no image",
            "c.txt": "k",
            "d.jpg": encoded(4, "JPEG"),
            "d.json": {"caption": "z", "questions": [{"question": "q", "answers": ["a"]}]},
        },
    )
    write_tar(tmp_path / "train-00001.tar", {"a.jpg": encoded(5, "JPEG"), "a.txt": "x", "e.txt": "no image"})
    write_tar(tmp_path / "val.tar", {"a.jpg": encoded(5, "JPEG"), "a.txt": "x"})
    assert data.splits(tmp_path) == ["train", "val"] and len(data.open(tmp_path / "val.tar", "val")) == 1
    train = data.open(f"{tmp_path}/train-{{00000..00001}}.tar", "train", on_error="skip")
    train.verify()
    assert [fault.split()[0] for fault in train.faults] == ["train-00000.tar/c", "train-00001.tar/e"]
    assert [item.captions for item in train] == [["x", "y"], ["one", "two"], ["z"], ["x"]]
    assert train[2].questions == [Question("q", ["a"])] and train[0].image_id == 3
    assert len({item.image_id for item in train}) == 4


def test_shards_equal_what_they_were_made_of(tmp_path):
    scenes = Scenes("val", size=7)
    for packed, drawn in zip(data.open(write_shards(tmp_path, scenes, 3), "val"), scenes, strict=True):
        assert (packed.captions, packed.questions, packed.image_id) == (drawn.captions, drawn.questions, drawn.image_id)
        assert packed.image.tobytes() == drawn.image.tobytes()


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(tmp_path) -> str:
    write_shards(tmp_path, Scenes("train-small", size=24), 3)
    return f"hub:{tmp_path}?stream=true&rows=24"


def numbers(dataset: Stream, count: int, rank: int = 0, world: int = 1, workers: int = 0) -> list[int]:
    return [example.image_id for _, example in islice(dataset.examples(0, rank, world, workers), count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_every_row_once_an_epoch(stream, workers):
    dataset = data.open(stream, "train")
    drawn = numbers(dataset, 48, workers=workers)
    assert sorted(drawn[:24]) == sorted(drawn[24:]) == [x.image_id for x in Scenes("train-small", size=24)]
    assert drawn[:24] != drawn[24:] and drawn == numbers(data.open(stream, "train"), 48)
    assert len(dataset) == 24 and len(dataset.first(5)) == 5 and dataset.fields == {"captions", "questions"}


def test_two_processes_stream_every_row_once(stream):
    shares = [numbers(data.open(stream, "train"), 12, rank, world=2) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == [x.image_id for x in Scenes("train-small", size=24)]


def test_a_resumed_stream_continues(stream, monkeypatch):
    """With a buffer of one row, exactly; a larger one is refilled."""
    monkeypatch.setattr("dlip.data.hub.stream.SHUFFLE_BUFFER", 1)
    first, again = data.open(stream, "train"), data.open(stream, "train")
    whole = numbers(data.open(stream, "train"), 40)
    assert numbers(first, 30) == whole[:30]
    again.load_state_dict(first.state_dict())
    assert numbers(again, 10) == whole[30:]


def test_faults_of_a_stream(tmp_path):
    write_tar(tmp_path / "t.tar", {"a.png": b"bad", "a.txt": "x", "b.png": encoded(2), "b.txt": "y", "c.txt": "z"})
    name = f"hub:{tmp_path}?stream=true&rows=3"
    skipping = data.open(name, "train", on_error="skip")
    assert len(set(numbers(skipping, 4))) == 1
    assert sorted(fault.partition("t.tar/")[2][0] for fault in skipping.faults) == ["a", "c"]
    with pytest.raises(UserError, match="t.tar/"):
        numbers(data.open(name, "train"), 4)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_a_killed_run_on_shards_resumes(streamed, stream, tiny, tmp_path_factory, monkeypatch):
    """To the same bits; so does a stream without shuffle buffer, which the library would refill."""
    monkeypatch.setattr("dlip.data.hub.stream.SHUFFLE_BUFFER", 1)
    config = TrainConfig(steps=6, batch_size=4, warmup=1, save_every=2, weights={"itc": 1.0, "lm": 1.0})
    name, places = stream if streamed else stream.partition("?")[0], [tmp_path_factory.mktemp("run") for _ in range(2)]

    def run(place: Path, killed: bool) -> Med:
        dataset = data.open(name, "train")
        seen, first = [], Collate.__call__

        def counted(collate, items):
            seen.extend(item.image_id for item in items)
            if killed and len(seen) > 12:
                raise KeyboardInterrupt
            return first(collate, items)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Collate, "__call__", counted)
            torch.manual_seed(0)
            student = VLM(Med(replace(tiny.med.config, image_layers=1)), tiny.tokenizer)
            with pytest.raises(KeyboardInterrupt) if killed else nullcontext():
                train(student, dataset, config, place, progress=False)
        return student.med, seen

    whole, all_seen = run(places[0], killed=False)
    _, before = run(places[1], killed=True)
    resumed, after = run(places[1], killed=False)
    assert before[:8] + after == all_seen
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
