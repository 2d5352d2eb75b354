"""Quick evaluations while a student trains: they change nothing of it, and a resumed run has all of them."""

import json

import pytest

from dlip.data.scenes.dataset import SPLITS
from dlip.experiments import measure, quick_eval
from dlip.experiments.config import DataConfig, ExperimentConfig, HeldOutConfig
from dlip.experiments.run import run
from dlip.records.evaluations import evaluations
from dlip.training.config import TrainConfig
from dlip.training.run_folder import Run

STUDENT = "scenes-student:image_layers=1,text_layers=2"
CONFIG = TrainConfig(
    steps=4,
    batch_size=4,
    warmup=1,
    lr=3e-3,
    optimizer="muon",
    save_every=2,
    log_every=1,
    weights={"itc": 1.0, "hr.image": 1.0},
    eval_every=1,
    eval_items=6,
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for split in ("train-small", "val", "test"):
        monkeypatch.setitem(SPLITS, split, 8)


@pytest.fixture
def evaluated(monkeypatch) -> list[str]:
    """Names of the models in the order of their quick evaluations."""
    names, evaluate = [], quick_eval.evaluate

    def counted(vlm, dataset, **options):
        names.append(vlm.name)
        return evaluate(vlm, dataset, **options)

    monkeypatch.setattr(quick_eval, "evaluate", counted)
    return names


def experiment(**changes) -> ExperimentConfig:
    return ExperimentConfig(
        name="taught",
        size=STUDENT,
        teacher="scenes/teacher",
        role="distilled",
        data=DataConfig(limit=8),
        evaluation=HeldOutConfig(latency_repeats=0),
        train=CONFIG.replace(**changes),
    )


def go(folder, progress=False, **changes) -> dict:
    return run(experiment(**changes), folder, folder.parent / "records.jsonl", progress=progress)


def test_scores_of_student_and_teacher_are_recorded_and_change_nothing_of_training(tmp_path, evaluated):
    record = go(tmp_path / "watched")
    assert evaluated == [STUDENT, "scenes/teacher", STUDENT, STUDENT, STUDENT]
    kept = record["evaluations"]
    assert (kept["data"], kept["split"], kept["images"], kept["scores"]["step"]) == ("scenes", "val", 6, [1, 2, 3, 4])
    assert kept["teacher"]["tr1"] > 50 and kept["scores"].keys() - {"step"} == kept["teacher"].keys()
    assert json.loads((tmp_path / "watched" / "record.json").read_text())["evaluations"] == kept
    plain = go(tmp_path / "plain", eval_every=0)
    assert "evaluations" not in plain and len(evaluated) == 5
    assert [record[key] for key in ("losses", "metrics", "outcomes")] == [
        plain[key] for key in ("losses", "metrics", "outcomes")
    ]


def test_quick_and_last_evaluations_have_the_candidates_of_the_run(tmp_path, monkeypatch):
    given = []
    for module in (quick_eval, measure):
        evaluate = module.evaluate
        monkeypatch.setattr(
            module, "evaluate", lambda *args, f=evaluate, **options: given.append(options["k"]) or f(*args, **options)
        )
    held = HeldOutConfig(candidates=3, latency_repeats=0)
    run(experiment().replace(evaluation=held), tmp_path / "run", tmp_path / "records.jsonl", progress=False)
    assert given == [3] * 6


def test_resumed_run_has_the_whole_curve(tmp_path, capsys, evaluated, monkeypatch):
    """Interrupted in the fourth evaluation, after the checkpoint of step 2 and the evaluation of step 3."""
    whole = go(tmp_path / "whole")
    del evaluated[:]
    counted = quick_eval.evaluate

    def interrupted(*args, **options):
        if len(evaluated) == 4:
            raise KeyboardInterrupt
        return counted(*args, **options)

    monkeypatch.setattr(quick_eval, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "parts", progress=True)
    assert steps_printed(capsys) == [1, 2, 3]
    monkeypatch.setattr(quick_eval, "evaluate", counted)
    record = go(tmp_path / "parts", progress=True)
    assert record["evaluations"] == whole["evaluations"] and evaluated.count("scenes/teacher") == 1
    assert steps_printed(capsys) == [1, 2, 3, 4]
    with pytest.warns(UserWarning, match="nothing is done again"):
        assert go(tmp_path / "parts", progress=True) == record
    assert steps_printed(capsys) == [1, 2, 3, 4]


def steps_printed(capsys) -> list[int]:
    """Steps of the lines on standard output, all of them in ASCII."""
    out = capsys.readouterr().out
    assert out.isascii()
    return [int(line.split()[1]) for line in out.splitlines() if line.startswith("step ")]


def test_teacher_of_other_tasks_has_no_level(tmp_path):
    """It is trained for captioning alone, the student for VQA."""
    from dlip.data import open
    from dlip.data.dataset import FirstN
    from dlip.experiments.run import new_student
    from dlip.vlm import VLM

    teacher = VLM.load("scenes/teacher")
    student = new_student(STUDENT, teacher, 0)
    student.med.abilities, teacher.med.abilities = frozenset({"vqa"}), frozenset({"lm"})
    evaluate = quick_eval.QuickEvaluation(Run(tmp_path), FirstN(open("scenes", "val"), 2), teacher)
    metrics = evaluate(student)
    assert metrics["vqa"] and "teacher" not in metrics
    assert evaluations([{"step": 1, "eval": metrics}], 2)["teacher"] == {}
