"""Defaults of data sets, lists of examples, and what a user passes where a data set is expected."""

from dataclasses import replace

import numpy as np
import pytest

import dlip
from dlip.common.errors import UserError
from dlip.data import DataSet, Example, Question, as_dataset
from dlip.data.scenes.dataset import Scenes
from dlip.training.loop import train
from tests.training.helpers import SHORT


def example(shade: int, **fields) -> Example:
    return Example(np.full((8, 8, 3), shade, np.uint8), **fields)


class Shades(DataSet):
    name, split, fields = "shades", "train", frozenset({"captions"})

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Example:
        return example(i, image_id=i, captions=[f"shade {i}"] * i)

    def fingerprint(self) -> str:
        return "shades"


def test_defaults():
    shades = Shades()
    assert shades.counts() == {"images": 3, "captions": 3, "questions": 0} and not shades.verify()
    assert sorted(shades.order(0, 0)) == [0, 1, 2] and list(shades.texts(2)) == ["shade 1"]
    assert shades.without_image(1) == Example(None, 1, ["shade 1"]) and shades.scene(0) is None
    assert shades.image_bytes(0).startswith(b"\x89PNG") and as_dataset(shades) is shades
    assert len(shades.first_with("captions", 1)) == 2 and shades.first(1).fields == frozenset()


def test_the_first_images():
    some = Scenes("val").first(4)
    assert len(some) == len(list(some)) == 4 and some.has_scenes and some.scene(3) == Scenes("val").scene(3)
    assert some.fields == {"captions", "questions", "tags"} and sorted(some.order(1, 0)) == [0, 1, 2, 3]
    assert some.fingerprint() != Scenes("val").first(3).fingerprint()
    with pytest.raises(IndexError):
        some[4]


def test_a_list_of_examples():
    given = [example(1, captions=["one"]), example(2, image_id=7, questions=[Question("what?", ["two"])])]
    dataset = as_dataset(given)
    assert [x.image_id for x in dataset] == [0, 7] and dataset.fields == {"captions", "questions"}
    changed = [given[0], replace(given[1], image=given[0].image)]
    assert as_dataset(changed).fingerprint() != dataset.fingerprint() == as_dataset(given).fingerprint()
    assert as_dataset("scenes", "val").split == "val"


@pytest.mark.parametrize(
    ("examples", "named"),
    [
        ([], "empty"),
        ([example(0, captions=["one"]), example(1)], "example 1 "),
        ([example(0, captions=["one"]), {"caption": "two"}], "example 1 .*dict"),
        ([example(0, captions=[5])], "5"),
    ],
)
def test_unusable_examples_are_named(examples, named):
    with pytest.raises(UserError, match=named):
        as_dataset(examples)


def test_training_names_the_first_example_without_captions(make_vlm, tmp_path):
    asked = [example(i, questions=[Question("what?", ["shade"])]) for i in range(8)]
    with pytest.raises(UserError, match="itc needs captions.* 0"):
        train(make_vlm(), as_dataset(asked), SHORT.replace(weights={"itc": 1.0}), tmp_path / "run", progress=False)


def test_distilling_from_a_list(tmp_path):
    scenes, options = Scenes("train-small"), SHORT.to_dict() | {"weights": "vlp,hr,at"}
    run = dlip.distill("scenes/teacher", "scenes-student", [scenes[i] for i in range(8)], folder=tmp_path, **options)
    assert run.log["step"].iloc[-1] == SHORT.steps
