"""A dataset written as a folder reads back equal."""

import json

import numpy as np

from dlip import data
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes


def test_written_folder_reads_back_equal(tmp_path):
    splits = {"train": Scenes("train-small", size=5), "test": Scenes("test", size=3)}
    write_folder(tmp_path, splits)
    assert data.splits(tmp_path) == ["test", "train"]
    for split, dataset in splits.items():
        back = data.open(tmp_path, split)
        back.verify()
        assert len(back) == len(dataset)
        for original, copy in zip((dataset[i] for i in range(len(dataset))), back, strict=True):
            assert np.array_equal(original.image, np.asarray(copy.image)) and original.captions == copy.captions
            # equal questions of one image are merged on reading
            first, second = ({q.text: (q.answers[0], q.type) for q in item.questions} for item in (original, copy))
            assert first == second


def test_writing_again_replaces_the_old_folder(tmp_path):
    for size in (4, 2):
        write_folder(tmp_path, {"test": Scenes("test", size=size)})
    assert len(data.open(tmp_path, "test")) == 2


def test_writers_of_captions_are_kept(tmp_path):
    splits = {"train": Scenes("train-small", size=2)}
    write_folder(tmp_path, splits)
    rows = json.loads((tmp_path / "captions.json").read_text())
    assert all(set(row) == {"raw"} for image in rows["images"] for row in image["sentences"])
    dataset = data.open(tmp_path, "train")
    (written, *_) = dataset.annotations[1].captions
    dataset.annotations[1].writers[written] = "org/writer"
    write_folder(tmp_path / "again", {"train": dataset})
    assert [item.writers for item in data.open(tmp_path / "again", "train")] == [{}, {written: "org/writer"}]
