"""From names to a run: students that fit their teacher, and the splits that are taken where none is named."""

import json
import warnings

import pytest
import torch

import dlip
from dlip import records
from dlip.cli import main
from dlip.common import distributed
from dlip.common.errors import UserError
from dlip.data.dataset import DataSet
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.experiments import run as run_module
from dlip.experiments.config import DataConfig, ExperimentConfig, HeldOutConfig
from dlip.experiments.run import measure, new_student, prepare, train_tokenizer
from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.run_folder import Run
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.checkpoints.dual_helpers import dual_folder

TRAIN = ExperimentConfig("scenes-student", tokenizer="scenes/teacher", data=DataConfig(limit=8))
DISTILL = TRAIN.replace(tokenizer=None, teacher="scenes/teacher", role="distilled")


@pytest.fixture(scope="module")
def teacher() -> VLM:
    return dlip.load("scenes/teacher")


def test_a_student_reads_what_its_teacher_reads(teacher):
    student = new_student("dlip-tiny", teacher, 0)
    for name in ("vocab_size", "cls_id", "sep_id", "dec_id", "enc_id", "prompt_ids", "image_mean"):
        assert getattr(student.med.config, name) == getattr(teacher.med.config, name)
    assert student.tokenizer is teacher.tokenizer and student.med.config.image_width == 192


@pytest.mark.parametrize("change", ["max_positions=64", "image_width=32,enc_id=6"])
def test_a_size_cannot_change_what_the_teacher_sets(change, teacher):
    with pytest.raises(
        UserError, match=r"a student's (max_positions|enc_id) is its teacher's; leave it out of the size"
    ):
        new_student(f"scenes-student:{change}", teacher, 0)


def test_a_seed_is_a_student(teacher):
    first, again, other = (new_student("scenes-student", teacher, seed).med for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.itm_head.weight, other.itm_head.weight)


@pytest.mark.parametrize(
    ("typed", "init_from", "abilities"),
    [
        ("vlp,itm=0", [], {"itc", "lm", "vqa"}),
        ("hr,at", [], {"itc", "itm", "lm", "vqa"}),
        ("kd.lm,hr", [], {"lm"}),
        ("lm", ["scenes/student"], {"itc", "itm", "lm", "vqa"}),
        ("itc", ["image=scenes/student"], {"itc"}),
    ],
)
def test_abilities_are_those_trained_or_initialized(typed, init_from, abilities):
    train = TrainConfig(steps=2, batch_size=4, warmup=1, weights=weights(typed))
    ready = prepare(DISTILL.replace(init_from=tuple(init_from), train=train))
    assert ready.student.med.abilities == abilities


@pytest.mark.parametrize("typed", ["itm", "hr,kd.itm"])
def test_what_cannot_be_evaluated_is_not_trained(typed):
    with pytest.raises(UserError, match="^no trained task can be evaluated on 1,000 images of scenes test; "):
        prepare(DISTILL.replace(train=TrainConfig(weights=weights(typed))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(teacher="runs/none", role="distilled"), "there is no model"),
        (dict(init_from=("runs/none",)), "there is no model"),
        (dict(size="huge"), "no model size"),
        (dict(size="huge", tokenizer=None), "no model size"),
        (dict(train=TrainConfig(weights={"itm": 1.0})), "no trained task"),
    ],
)
def test_mistakes_are_found_before_images_are_read(changes, message, monkeypatch):
    monkeypatch.setattr(DataSet, "verify", lambda _: pytest.fail("read"))
    with pytest.raises(UserError, match=message):
        prepare(TRAIN.replace(**changes))


def test_faults_of_two_sets_of_one_split_are_added_up(damaged, tmp_path):
    write_folder(tmp_path / "more", {"train": Scenes("val", size=4)})
    (tmp_path / "more" / "images" / "train-000001.png").write_bytes(b"broken")
    experiment = ExperimentConfig(
        "scenes-student",
        tokenizer="scenes/teacher",
        data=DataConfig(damaged[1], "train", on_error="skip"),
        evaluation=HeldOutConfig(data=str(tmp_path / "more"), split="train"),
        train=TrainConfig(batch_size=4),
    )
    with pytest.warns(UserWarning):
        assert prepare(experiment).skipped == {"train": 2}


@pytest.mark.parametrize(("typed", "glanced"), [("itc", "retrieval"), ("lm", "captioning")])
def test_a_run_with_one_loss_leaves_a_record(typed, glanced, tmp_path, monkeypatch):
    for split in ("train-small", "val", "test"):
        monkeypatch.setitem(SPLITS, split, 8)
    words = ["train", "--tokenizer", "scenes/teacher", "--size", "scenes-student", "--weights", typed, "--steps", "2"]
    words += ["--batch-size", "4", "--eval-every", "1", "--latency-repeats", "3", "--out", str(tmp_path / "a")]
    assert main([*words, "--results", str(tmp_path / "r.jsonl")]) == 0
    (record,) = records.read(tmp_path / "r.jsonl")
    assert record["efficiency"]["latency"]["repeats"] == 3 and record["metrics"][glanced]
    looked = [row["eval"][glanced] for row in Run(tmp_path / "a").rows() if "eval" in row]
    assert len(looked) == 2 and all(looked)


def test_the_scenes_vocabulary_is_closed():
    words = train_tokenizer(Scenes("train-large", size=300))
    unknown = words.fast.token_to_id("[UNK]")
    ids, _ = words.encode(list(Scenes("test", size=50).texts(50)))
    assert not (ids == unknown).any()


@pytest.fixture
def damaged(tmp_path) -> list[str]:
    """Options of data of three splits, each of whose first pictures cannot be read."""
    split_of = {"train": "train-small", "val": "val", "test": "test"}
    write_folder(tmp_path / "set", {split: Scenes(name, size=9) for split, name in split_of.items()})
    for split in split_of:
        (tmp_path / "set" / "images" / f"{split}-000000.png").write_bytes(b"broken")
    return ["--data", str(tmp_path / "set"), "--on-error", "skip"]


def test_skipped_images_are_warned_about_and_recorded(damaged, tmp_path, capsys):
    new = ["--size", "scenes-student", "--tokenizer", "scenes/teacher", "--steps", "1", "--batch-size", "4"]
    places = ["--out", str(tmp_path / "run"), "--results", str(tmp_path / "r.jsonl"), "--latency-repeats", "0"]
    with pytest.warns(UserWarning) as warned:
        assert main(["train", *damaged, *new, *places, "--candidates", "2"]) == 0
    said = [str(warning.message) for warning in warned]
    for split in ("train", "test"):
        assert any(f"skipped 1 fault in the {split} split of set: {split}-000000.png" in line for line in said)
    assert not any("the val split of set" in line for line in said)
    (record,) = records.read(tmp_path / "r.jsonl")
    assert record["train_images"] == 8 and record["notes"]["data"] == "faults skipped: 1 of train, 1 of test"
    capsys.readouterr()
    with pytest.warns(UserWarning, match="skipped 1 fault in the test split of set: test-000000.png"):
        words = ["evaluate", "--model", str(tmp_path / "run"), *damaged, "--candidates", "2", "--latency-repeats", "0"]
        assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"]["data"] == "faults skipped: 1 of test"


def test_skipped_steps_are_recorded(tmp_path, monkeypatch):
    plain = Learner.forward

    def spoilt(*inputs) -> dict:
        return {term: loss * (float("nan") if inputs[3] == 1 else 1) for term, loss in plain(*inputs).items()}

    monkeypatch.setattr(Learner, "forward", spoilt)
    words = "train --size scenes-student --tokenizer scenes/teacher --limit 4 --test-limit 2 --steps 3 --batch-size 4"
    words += f" --weights itc --nonfinite skip --latency-repeats 0 --out {tmp_path}/run --results {tmp_path}/r.jsonl"
    with pytest.warns(UserWarning, match="non-finite in step 2: itc; the step is skipped"):
        assert main(words.split()) == 0
    (record,) = records.read(tmp_path / "r.jsonl")
    assert record["notes"]["steps"] == "skipped as non-finite: 1 of 3"


def test_repeated_command_leaves_one_record(tmp_path):
    """As after a kill just after the record was written. Another evaluation makes another record."""
    words = "train --size scenes-student --tokenizer scenes/teacher --limit 4 --test-limit 2 --steps 1 --batch-size 4"
    words += f" --weights itc --warmup 0 --out {tmp_path}/run --results {tmp_path}/r.jsonl --latency-repeats"
    assert main([*words.split(), "0"]) == 0
    with pytest.warns(UserWarning, match="holds this run, and .*r.jsonl its record; nothing is done again"):
        assert main([*words.split(), "0"]) == 0
    assert len(records.read(tmp_path / "r.jsonl")) == 1
    assert main([*words.split(), "1"]) == 0
    first, second = records.read(tmp_path / "r.jsonl")
    assert "--latency-repeats 0 " in first["command"] and "--latency-repeats 1 " in second["command"]
    (tmp_path / "run" / "record.json").write_text("{")
    (tmp_path / "r.jsonl").unlink()
    assert main([*words.split(), "1"]) == 0
    assert len(records.read(tmp_path / "r.jsonl")) == 1


def test_a_run_is_measured_by_one_process_at_a_time(tmp_path, monkeypatch):
    """The command given again while the first measures is refused, and leaves no second record."""
    words = "train --size scenes-student --tokenizer scenes/teacher --limit 4 --test-limit 2 --steps 1 --batch-size 4"
    words += f" --weights itc --latency-repeats 0 --out {tmp_path}/run --results {tmp_path}/r.jsonl"

    def meanwhile(*given, **options):
        with pytest.raises(UserError, match="another process trains in"), Run(tmp_path / "run").exclusive():
            pass
        return measure(*given, **options)

    monkeypatch.setattr(run_module, "measure", meanwhile)
    assert main(words.split()) == 0
    assert len(records.read(tmp_path / "r.jsonl")) == 1
    with Run(tmp_path / "run").exclusive():
        pass


def test_only_the_first_process_of_a_machine_warns(damaged, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    words = ["evaluate", "--model", "scenes/student", *damaged, "--tasks", "retrieval", "--latency-repeats", "0"]
    with warnings.catch_warnings(record=True) as told:
        assert main([*words, "--json", "-"]) == 0 and main([*words, "--split", "none"]) == 2
    assert not told and not capsys.readouterr().err


def test_an_error_of_one_process_names_it(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    words = ["evaluate", "--model", "runs/none", "--json", "-"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("dlip (process 3): there is no model")
    error = UserError("all of them met it")
    error.shared = True
    monkeypatch.setattr(VLM, "load", lambda name: (_ for _ in ()).throw(error))
    assert main(words) == 2 and not capsys.readouterr().err


def test_training_is_evaluated_on_val_and_never_on_test(damaged, tmp_path):
    experiment = TRAIN.replace(
        data=DataConfig(damaged[1], on_error="skip"), train=TrainConfig(eval_every=1, eval_items=5)
    )
    with pytest.warns(UserWarning, match="skipped 1 fault in the val split of set"):
        ready = prepare(experiment)
    assert (ready.watched.split, len(ready.watched), ready.test.split, len(ready.test)) == ("val", 5, "test", 8)
    scenes = prepare(experiment.replace(data=DataConfig()))
    assert (scenes.watched.split, scenes.test.split) == ("val", "test")
    assert (scenes.experiment.data.split, scenes.experiment.evaluation.split) == ("train-small", "test")
    write_folder(tmp_path / "two", {"train": Scenes("train-small", size=6), "test": Scenes("test", size=6)})
    two = prepare(experiment.replace(data=DataConfig(str(tmp_path / "two"))))
    assert two.watched.split == "test"  # there is no val


def test_other_data_to_measure_on(tmp_path):
    """Data with a training split alone are learned from, and measured on others."""
    write_folder(tmp_path / "set", {"train": Scenes("train-small", size=8)})
    words = ["train", "--data", str(tmp_path / "set"), "--size", "scenes-student", "--tokenizer", "scenes/teacher"]
    words += ["--steps", "1", "--batch-size", "4", "--out", str(tmp_path / "run")]
    words += ["--results", str(tmp_path / "r.jsonl")]
    assert main(words) == 2 and main([*words, "--dry-run"]) == 2
    write_folder(tmp_path / "other", {"val": Scenes("val", size=6)})
    words += ["--candidates", "2", "--latency-repeats", "0"]
    assert main([*words, "--test-data", str(tmp_path / "other")]) == 0
    (record,) = records.read(tmp_path / "r.jsonl")
    assert (record["data"], record["split"], record["train_images"]) == ("other", "val", 8)


@pytest.mark.parametrize(("asked", "got"), [("max_text=20", 20), ("max_text=44", 40)])
def test_a_student_reads_no_longer_texts_than_it_may_or_its_teacher_does(asked, got):
    student = new_student(f"scenes-student:{asked}", VLM.load("scenes/teacher"), 0)
    assert student.med.config.max_text == got


def test_a_frozen_backbone_does_not_stay_random():
    experiment = ExperimentConfig("photos-hybrid-student", data=DataConfig(limit=8))
    with pytest.raises(UserError, match="tf_efficientnet_lite0 would stay random.*--init-from backbone=imagenet"):
        prepare(experiment)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    folder = dual_folder(tmp_path, "siglip")
    with pytest.raises(UserError, match="is not a BLIP, so students cannot use its tokenizer"):
        prepare(ExperimentConfig("scenes-student", tokenizer=str(folder), data=DataConfig(limit=8)))
