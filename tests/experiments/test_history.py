"""A record tells the runs that its model comes from."""

import json

import pytest

from dlip import records
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import SPLITS
from dlip.experiments.history import history, model_record, models_of


def test_a_record_lists_the_runs_that_its_model_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train-small", "test"):
        monkeypatch.setitem(SPLITS, split, 8)
    short = (
        "--size scenes-student --steps 1 --batch-size 4 --latency-repeats 0 --candidates 2 --results r.jsonl".split()
    )
    new = ["train", *short, "--tokenizer", "scenes/teacher", "--weights", "itc"]
    for out, start in (("lr=1/one", []), ("two", ["image=lr=1/one"]), ("three", ["two@48", "image=scenes/student"])):
        assert main([*new, *(word for part in start for word in ("--init-from", part)), "--out", out]) == 0
    one, two, three = records.read("r.jsonl")
    assert one["history"] == []
    for record, earlier in ((two, [one]), (three, [one, two])):
        assert [run["command"] for run in record["history"]] == [run["command"] for run in earlier]
        assert [run["config"]["train"]["steps"] for run in record["history"]] == [1] * len(earlier)
        assert all(run["wall_s"] >= 0 for run in record["history"])
    taught = ["distill", *short, "--teacher", "two", "--init-from", "lr=1/one", "--weights", "itc,hr.text"]
    assert main([*taught, "--out", "four"]) == 0
    assert [run["folder"] for run in records.read("r.jsonl")[-1]["history"]] == ["lr=1/one", "two"]  # each once
    for wrong in (5, [5]):
        run = json.loads((tmp_path / "two" / "run.json").read_text())
        (tmp_path / "two" / "run.json").write_text(json.dumps(run | {"init_from": wrong}))
        with pytest.raises(UserError, match="run.json does not say what the run started from"):
            history(["two"])


def test_the_record_of_a_model_at_another_image_size_says_so():
    own, resized = model_record("scenes/student"), model_record("scenes/student@48")
    assert resized == own | {"name": "student, 48 px"} and own["role"] == "distilled"


def test_missing_names_are_no_earlier_runs():
    assert models_of({"teacher": None, "tokenizer": None, "init_from": ["image=x"]}, "run") == ["image=x"]


def test_a_run_in_the_folder_that_initialized_it_is_listed_once(tmp_path):
    run = {"init_from": [str(tmp_path)], "model": {}, "train": {}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (found,) = history([f"image={tmp_path}/"])
    assert found["folder"] == str(tmp_path) and found["config"] == run
