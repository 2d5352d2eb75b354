"""Datasets joined by +: all images of each, mixed anew every epoch, no image id shared."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dlip import data
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data import sources
from dlip.data.audit import check
from dlip.data.joined import JoinedDatasets
from dlip.data.scenes.dataset import Scenes
from dlip.data.shards.write import write_shards
from dlip.experiments.config import DataConfig, ExperimentConfig
from dlip.experiments.run import new_model, prepare, train_tokenizer
from dlip.training.config import TrainConfig
from dlip.training.loop import train


@pytest.fixture
def make(tmp_path):
    """Write a folder of images 0.png, 1.png, ..., each with a caption or a question."""

    def build(name: str, images: int, questions: bool = False, split: str = "train"):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (8, 8), (20 * i, 90, 200)).save(folder / "images" / f"{i}.png")
        if questions:
            rows = [dict(image=f"{i}.png", question="how much?", answers=[f"{i}"], split=split) for i in range(images)]
            (folder / "vqa.json").write_text(json.dumps(rows))
        else:
            rows = [dict(filename=f"{i}.png", split=split, sentences=[{"raw": f"shade {i}"}]) for i in range(images)]
            (folder / "captions.json").write_text(json.dumps({"images": rows}))
        return folder

    return build


def test_all_images_of_each_dataset(make):
    captioned, questioned = make("captioned", 5), make("questioned", 4, questions=True)
    joined = data.open(f"{captioned}+{questioned}", "train")
    assert (joined.name, joined.split, len(joined)) == ("captioned+questioned", "train", 9)
    assert joined.counts() == {"images": 9, "captions": 5, "questions": 4}
    assert [item.captions for item in joined] == [[f"shade {i}"] for i in range(5)] + [[]] * 4
    assert [q.answers for item in joined for q in item.questions] == [[f"{i}"] for i in range(4)]
    assert data.splits(f"{captioned}+{questioned}") == ["train"]
    for beyond in (-1, 9):
        with pytest.raises(IndexError):
            joined[beyond]


@pytest.mark.parametrize(("limit", "counts"), [(4, (2, 2)), (5, (3, 2)), (9, (5, 4)), (1, (1, 0)), (100, (5, 4))])
def test_a_limit_takes_an_equal_share_of_each(make, limit, counts):
    name = f"{make('captioned', 5)}+{make('questioned', 4, questions=True)}"
    limited = data.open(name, "train", limit)
    assert limited.counts() == {"images": sum(counts), "captions": counts[0], "questions": counts[1]}
    assert [i for item in limited for i in item.captions] == [f"shade {i}" for i in range(counts[0])]
    assert sorted(limited.order(0, 0)) == list(range(sum(counts)))
    assert limited.fingerprint() != data.open(name, "train").fingerprint() or limit == 100
    assert limited.verify() == []


def test_images_of_the_same_name_have_different_ids(make):
    joined = data.open(f"{make('one', 3)}+{make('two', 3)}", "train")
    numbers = [item.image_id for item in joined]
    assert len(set(numbers)) == 6 and [joined.without_image(i).image_id for i in range(6)] == numbers


def test_writers_of_captions_are_kept(make, tmp_path):
    human, written = make("human", 2), make("written", 1)
    rows = [dict(filename="0.png", split="train", sentences=[{"raw": "a shade", "writer": "m"}])]
    (written / "captions.json").write_text(json.dumps({"images": rows}))
    joined = data.open(f"{human}+{written}", "train")
    assert [item.writers for item in joined] == [{}, {}, {"a shade": "m"}]
    assert joined.without_image(2).writers == {"a shade": "m"}
    assert [joined.without_image(i) for i in range(3)] == [replace(item, image=None) for item in joined]
    assert check(f"{human}+{written}")["writers"] == {"human": 2, "m": 1}


def test_order_is_a_permutation_that_mixes_the_datasets(make):
    joined = JoinedDatasets([Scenes("val", size=300), Scenes("val", seed=1, size=100)])
    first, second = joined.order(0, 0), joined.order(0, 1)
    assert sorted(first) == sorted(second) == list(range(400)) and first != second
    assert first == joined.order(0, 0) != joined.order(1, 0)
    assert [i >= 300 for i in first] != [i >= 300 for i in second]
    share = np.mean([np.array(first[start : start + 100]) >= 300 for start in range(0, 400, 100)], axis=1)
    assert (abs(share - 0.25) < 0.15).all()  # a quarter of every stretch is of the smaller dataset


def test_dataset_keeps_its_own_order(tmp_path):
    write_shards(tmp_path / "shards", {"val": Scenes("val", size=12)}, 4)
    shards, drawn = data.open(tmp_path / "shards", "val"), Scenes("val", size=6)
    order = JoinedDatasets([drawn, shards]).order(3, 2)
    assert [i - 6 for i in order if i >= 6] == shards.order(3, 2)


def test_quarantined_image_moves_those_behind_it(make):
    captioned, questioned = make("captioned", 3), make("questioned", 2, questions=True)
    (captioned / "images" / "1.png").write_bytes(b"no image")
    joined = data.open(f"{captioned}+{questioned}", "train", on_error="skip")
    joined.verify()
    assert len(joined) == 4 and joined[2].questions and len(joined.faults) == 1 and "1.png" in joined.faults[0]
    with pytest.raises(UserError, match="1.png"):
        data.open(f"{captioned}+{questioned}", "train").verify()


def test_fields_of_a_limited_dataset(make):
    name = f"{make('captioned', 3)}+{make('questioned', 2, questions=True)}"
    assert "questions" in data.open(name, "train").fields
    assert "questions" not in data.open(name, "train", limit=1).fields
    assert "questions" in data.open(name, "train", limit=2).fields


def test_evaluated_images_have_the_trained_fields(make):
    """Otherwise the first evaluation would end the run."""
    name = f"{make('captioned', 3, split='val')}+{make('questioned', 2, questions=True, split='val')}"
    config = TrainConfig(weights={"vqa": 1.0}, eval_every=1, eval_items=1)
    experiment = ExperimentConfig(
        "scenes-student", tokenizer="scenes/teacher", data=DataConfig(name, "val"), train=config
    )
    with pytest.raises(UserError, match=r"on 1 image of captioned\+questioned val; .* or more --eval-items"):
        prepare(experiment)
    prepare(experiment.replace(train=config.replace(eval_items=2)))


def test_tags_are_dropped(make):
    assert JoinedDatasets([Scenes("val", size=2), data.open(make("captioned", 2), "train")])[0].tags is None


def test_vocabulary_and_training_use_all_datasets(make, tmp_path):
    joined = data.open(f"{make('captioned', 6)}+{make('questioned', 6, questions=True)}", "train")
    assert {"shade 5", "how much?"} <= set(joined.texts(6))
    torch.manual_seed(0)
    student = new_model(
        "scenes-student:image_width=16,text_width=16,image_layers=1,text_layers=1", train_tokenizer(joined), 0
    )
    config = TrainConfig(steps=4, batch_size=6, warmup=1, log_every=1)
    losses = train(student, joined, config, tmp_path / "run", progress=False).losses()
    assert all(max(losses[term]) > 0 for term in ("itc", "itm", "lm", "vqa"))


def test_wrong_names(make, tmp_path):
    one, two = make("one", 1), make("two", 1, split="val")
    with pytest.raises(UserError, match="no split in common"):
        data.splits(f"{one}+{two}")
    for mixed in (f"{one}+{two}", f"scenes+{one}"):
        with pytest.raises(UserError, match="no split in common"):
            data.open(mixed, "train")
    empty = tmp_path / "empty"
    (empty / "images").mkdir(parents=True)
    (empty / "vqa.json").write_text("[]")
    for name in (empty, f"{one}+{empty}"):
        with pytest.raises(UserError, match="empty has no images with texts"):
            data.splits(name)
    with pytest.raises(UserError, match="share no split 'val'; choose one of: train"):
        data.open(f"{one}+{make('other', 1)}", "val")
    with pytest.raises(UserError, match="empty name"):
        data.open(f"{one}+", "train")
    with pytest.raises(UserError, match="name a dataset twice"):
        data.open(f"{one}+{one}", "train")
    with pytest.raises(UserError, match="the name of the data is empty"):
        data.open(" ", "train")
    with pytest.raises(UserError, match="no folder"):
        data.open(f"{one}+{tmp_path / 'gone'}", "train")
    assert data.open(make("c++", 2), "train").name == "c++"  # an existing folder


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("scenes+hub:name", 2),
        ("https://host/a+b/train-{000..003}.tar", 1),
        ("my+data/train-{000..003}.tar", 1),
        ("hub:/place/c++/set", 1),
        ("hub:one+hub:two", 2),
        ("https://host/a+scenes", 2),
        ("no/such+folders", 2),
    ],
)
def test_plus_within_a_name(name, names):
    assert len(sources.dataset_names(name)) == names


def test_audit_reads_every_split_of_every_dataset(make, capsys):
    one, two = make("one", 3), make("two", 2, questions=True)
    rows = json.loads((one / "captions.json").read_text())
    Image.open(one / "images" / "0.png").save(one / "images" / "copy.png")
    rows["images"].append(dict(filename="copy.png", split="val", sentences=[{"raw": "again"}]))
    (one / "captions.json").write_text(json.dumps(rows))
    Image.new("RGB", (8, 8), (250, 0, 0)).save(two / "images" / "1.png")  # 0.png is one's 0.png too
    result = check(f"{one}+{two}")
    assert result["splits"].keys() == {f"{one} train", f"{one} val", f"{two} train"}
    assert result["faults"] == {
        "images shared by splits": [f"copy.png ({one} val) is 0.png ({one} train)"],
        "repeated images": [f"0.png ({two} train) is 0.png ({one} train)"],
    }
    assert main(["data", f"{one}+{two}"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[:3]] == ["train", "val", "train"]


def test_fingerprint_is_of_all_datasets_in_their_order():
    one, two, less = Scenes("val", size=4), Scenes("val", seed=1, size=4), Scenes("val", seed=1, size=3)
    prints = [JoinedDatasets(some).fingerprint() for some in ([one, two], [two, one], [one, less], [less, two])]
    assert len(set(prints)) == 4 and JoinedDatasets([one, two]).fingerprint() == prints[0]
