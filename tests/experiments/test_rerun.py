"""Reruns of records: equal figures, refused folders, missing models."""

import json
import shlex
from unittest.mock import Mock

import pytest
import torch

from dlip import data, records
from dlip.checkpoints.load import model_folder
from dlip.cli import INTERRUPTED, main
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.experiments.history import teacher_record
from dlip.experiments.rerun import check_models, circumstances, difference, find_record, repeat
from dlip.records.write import append
from dlip.training.run_folder import weights_hash
from dlip.vlm import VLM
from tests.helpers import ROOT, make_record

TINY = "scenes-student:image_width=16,text_width=16,image_layers=1,text_layers=1"


def test_rerun_is_bit_exact(tmp_path, capsys, monkeypatch):
    file = tmp_path / "first.jsonl"
    words = ["train", "--tokenizer", "scenes/teacher", "--size", TINY, "--limit", "32", "--steps", "3", "--batch-size"]
    words += ["8", "--warmup", "1", "--log-every", "1", "--test-split", "val", "--seed", "3", "--name", "mine"]
    words += ["--test-limit", "16", "--latency-repeats", "0"]
    assert main([*words, "--out", str(tmp_path / "run"), "--results", str(file), "--json", str(tmp_path / "a")]) == 0
    again = ["rerun", str(file), "--out", str(tmp_path / "again"), "--results", str(tmp_path / "second.jsonl")]
    capsys.readouterr()
    assert main([*again, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["losses"] and set(found["difference"].values()) == {0} and found["before"] == found["after"]
    assert found["circumstances"] == {} and torch.get_num_threads() == records.read(file)[0]["threads"]
    assert len(records.read(file)) == 1 and records.read(tmp_path / "second.jsonl")[0]["seed"] == 3
    inputs = records.read(file)[0]["inputs"]
    assert "inputs" not in records.read(file)[0]["config"]  # else seeds, which begin elsewhere, would share no hash
    assert inputs["test"] == data.open("scenes", "val", 16).fingerprint() != inputs["data"]
    assert len(inputs["start"]) == 64
    assert (inputs["teacher"], inputs["images"]) == (None, 32)
    assert inputs["code"] == records.read(file)[0]["code"]  # known from the start: it may be newer a week later
    assert inputs == records.read(tmp_path / "second.jsonl")[0]["inputs"]
    with monkeypatch.context() as patch:
        patch.setattr("dlip.experiments.run.train", Mock(side_effect=KeyboardInterrupt))
        assert main([*again[:3], str(tmp_path / "stopped"), "--results", str(tmp_path / "third.jsonl")]) == INTERRUPTED
    assert main([*again[:3], str(tmp_path / "run"), "--results", str(tmp_path / "third.jsonl")]) == 2
    assert "holds a finished run" in capsys.readouterr().err and not (tmp_path / "third.jsonl").exists()


@pytest.mark.parametrize("last", ["measure", "append"])
def test_rerun_killed_after_training_resumes(last, tmp_path, monkeypatch, capsys):
    words = (
        f"train --tokenizer scenes/teacher --size {TINY} --limit 8 --steps 1 --batch-size 8 --weights itc --test-limit"
    )
    places = ["--out", str(tmp_path / "run"), "--results", str(tmp_path / "a.jsonl")]
    assert main([*words.split(), "2", "--latency-repeats", "0", *places]) == 0
    again = ["rerun", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "b"), "--results", str(tmp_path / "b.jsonl")]
    with monkeypatch.context() as patch:
        patch.setattr(f"dlip.experiments.run.{last}", Mock(side_effect=KeyboardInterrupt))
        assert main(again) == INTERRUPTED
    monkeypatch.setattr("dlip.training.learner.Learner.forward", lambda *_: pytest.fail("trained again"))
    assert main(again) == 0 and len(records.read(tmp_path / "b.jsonl")) == 1
    assert main(again) == 2 and "holds a finished run" in capsys.readouterr().err


def test_the_latest_record_is_of_whatever_file(tmp_path):
    for file, day in (("a", 2), ("b", 1)):
        record = make_record(file) | {"created": f"2026-01-0{day}T00:00:00+00:00"}
        (tmp_path / f"{file}.jsonl").write_text(json.dumps(record) + "\n")
    assert find_record(tmp_path)["name"] == "a"


def test_evaluation_is_rerun(tmp_path, capsys):
    file, more = tmp_path / "r.jsonl", tmp_path / "more.jsonl"
    words = ["evaluate", "--model", "scenes/student", "--split", "test-5k", "--limit", "20", "--tasks", "retrieval"]
    assert main([*words, "--latency-repeats", "0", "--results", str(file), "--json", str(tmp_path / "a")]) == 0
    (record,), made = records.read(file), records.upgrade(read_json(model_folder("scenes/student") / "record.json"))
    assert (record["split"], record["seed"], record["metrics"]["vqa"]) == ("test-5k", made["seed"], None)
    assert record["history"][-1]["command"] == made["command"] != record["command"]
    assert record["name"] == "student, retrieval"
    del record["evaluation"]["precision"]  # as older records have none
    file.write_text(json.dumps(record))
    assert main(["rerun", str(file), "--results", str(more), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["losses"], found["circumstances"]) == (None, {})
    again = records.read(more)[0]
    assert again["metrics"] == record["metrics"] and again["device"] == "cpu"
    test = data.open("scenes", "test-5k", 20).fingerprint()
    assert again["inputs"] == {"model": weights_hash(VLM.load("scenes/student")), "test": test}


def test_a_teacher_from_elsewhere_is_recorded_and_its_student_compared_with_it(tiny, tmp_path, capsys):
    file, teacher = tmp_path / "runs.jsonl", str(tmp_path / "teacher")
    tiny.save(teacher)
    words = ["distill", "--teacher", teacher, "--size", TINY, "--weights", "itc,kd.itc", "--limit", "8", "--steps", "1"]
    words += ["--batch-size", "8", "--test-split", "val", "--test-limit", "4", "--latency-repeats", "0"]
    words += ["--out", str(tmp_path / "run"), "--results", str(file)]
    assert main(words) == 0
    (advice,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  dlip evaluate")]
    assert main(shlex.split(advice)[1:]) == 0
    made = records.read(file)[-1]
    assert (made["name"], made["role"], made["train_images"]) == (teacher, "teacher", 0)
    assert made["history"] == [{"folder": teacher, "command": None, "config": made["config"], "wall_s": 0.0}]
    assert teacher_record(records.read(file)[0], file)["id"] == made["id"]
    student, older = records.read(file)[0], made | {"evaluation": {**made["evaluation"]}}
    del older["evaluation"]["precision"]
    (tmp_path / "older.jsonl").write_text(json.dumps(older) + "\n")
    assert teacher_record(student, tmp_path / "older.jsonl")["id"] == made["id"]
    assert teacher_record(student | {"inputs": {}}, file) is None  # the teacher's weights are unknown
    other = made | {"evaluation": made["evaluation"] | {"tasks": ["retrieval"]}}
    (tmp_path / "other.jsonl").write_text(json.dumps(other) + "\n")
    assert teacher_record(records.read(file)[0], tmp_path / "other.jsonl") is None  # measured otherwise
    capsys.readouterr()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "of the teacher's" in printed and "dlip evaluate" not in printed
    assert main(["rerun", str(file), "--name", teacher, "--results", str(tmp_path / "again.jsonl")]) == 0


def test_find_record(tmp_path):
    for name, seed in (("a", 0), ("a", 1), ("b", 0)):
        append(make_record(name, seed=seed), tmp_path / "r.jsonl")
    assert find_record(tmp_path / "r.jsonl", "a")["seed"] == 1
    assert find_record(tmp_path / "r.jsonl", "a", 0)["seed"] == 0 and find_record(tmp_path / "r.jsonl")["name"] == "b"
    for wanted, message in ((("c",), "no record of name c;"), (("b", 4), "name b and seed 4")):
        with pytest.raises(UserError, match=message):
            find_record(tmp_path / "r.jsonl", *wanted)


def test_missing_model_is_named_with_its_command(tmp_path):
    here, command = str(tmp_path / "first"), "dlip train --out runs/first"
    record = {"name": "a", "history": [{"folder": here, "command": command}]}
    for name in (here, f"image={here}@64", f"{here}/+other"):
        with pytest.raises(UserError, match=f"^a starts from {here}, which does not exist; make it first: {command}$"):
            check_models(record, [name])
    with pytest.raises(UserError, match="its command was not kept"):
        check_models({"name": "a", "history": [{"folder": here, "command": None}]}, [here])
    check_models(record, [f"{here}-words"])  # what a run before it started from
    (tmp_path / "first").mkdir()
    check_models(record, [here])


def test_a_record_of_schema_1_is_repeated(tmp_path, monkeypatch):
    """With the experiment that it was made by, its folder and file of records apart."""
    done = []
    monkeypatch.setattr("dlip.experiments.rerun.run", lambda *args, **options: done.append((args, options)))
    record = find_record(ROOT / "results" / "tuning" / "scenes.jsonl", "p3-hrimage", 0)
    repeat(record, tmp_path / "run", tmp_path / "r.jsonl", progress=False)
    (((experiment, folder, results), _),) = done
    assert (folder, results) == (tmp_path / "run", tmp_path / "r.jsonl")
    assert (experiment.name, experiment.teacher, experiment.size) == ("p3-hrimage", "scenes/teacher", "scenes-student")
    assert (experiment.train.seed, experiment.train.steps, experiment.train.cache) == (0, 1000, True)
    assert (experiment.data.split, experiment.evaluation.split) == ("train-small", "val")


def test_circumstances_list_differences():
    before, after = make_record("a"), make_record("a")
    assert circumstances(before, after) == {}
    assert circumstances(before | {"threads": 1}, after | {"threads": 2}) == {"threads": (1, 2)}
    one, two = {"numpy": "2.0"}, {"numpy": "2.1"}
    assert circumstances(before | {"releases": one}, after | {"releases": two}) == {"releases": (one, two)}
    there = {"cpu": "a", "gpu": None, "cores": 2}
    assert circumstances(before | {"machine": there}, after | {"machine": there | {"cpu": "b"}}) == {"cpu": ("a", "b")}
    newer = there | {"instructions": "AVX2"}
    assert circumstances(before | {"machine": there}, after | {"machine": newer}) == {}  # an older record says less
    other = newer | {"instructions": "AVX512 bf16"}
    found = circumstances(before | {"machine": newer}, after | {"machine": other})
    assert found == {"instructions": ("AVX2", "AVX512 bf16")}
    assert circumstances({**before, "machine": None, "processes": None}, after | {"processes": 2}) == {}
    one, two = ({"inputs": {"data": "a" * 64, "teacher": digit * 64}} for digit in "12")
    assert circumstances(before | one, after | two) == {"teacher": ("1" * 12, "2" * 12)}
    began = {"inputs": {"threads": 2, "torch": "1"}}  # of an older record it is not known
    assert circumstances(before | {"threads": 1, "inputs": {}}, after | {"threads": 1} | began) == {}


def test_differences_counted_by_hand():
    before, after = make_record("a", tr1=50.0), make_record("a", tr1=48.5)
    assert difference(before, after)["difference"]["tr1"] == -1.5
    after["losses"] = {"step": [1], "total": [0.5]}
    assert not difference(before, after)["losses"]
