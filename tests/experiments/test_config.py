"""An experiment as a value: JSON, command line, grid rows, and records written before."""

import json
import shlex

import pytest

from dlip import records
from dlip.cli import parse
from dlip.common.errors import UserError
from dlip.experiments.config import DataConfig, EvaluationConfig, ExperimentConfig, HeldOutConfig, MeasureConfig
from dlip.experiments.grids import FULL, GRIDS, QUICK
from dlip.records.migration import REMOVED_OPTIONS
from dlip.training.config import TrainConfig
from dlip.training.weights import weights
from tests.helpers import ROOT

SHIPPED = sorted([*(ROOT / "results").glob("*.jsonl"), *(ROOT / "results/tuning").glob("*.jsonl")])


def from_command(command: str) -> ExperimentConfig:
    options = parse(shlex.split(command)[1:])[1]
    cached = options.experiment.train.replace(cache=options.cache_folder is not None)
    return options.experiment.replace(train=cached)


def comparable(experiment: ExperimentConfig) -> ExperimentConfig:
    """Without what does nothing where there is no teacher, which `dlip train` therefore has no flags for."""
    if experiment.teacher:
        return experiment
    return experiment.replace(train=experiment.train.replace(center_states=False, learn_teacher_projection=True))


FULL_OF_OPTIONS = ExperimentConfig(
    size="scenes-student:text_layers=3",
    teacher="a+b c",
    role="distilled",
    init_from=("image=x", "y:0+1"),
    name="-n",
    data=DataConfig(name="photos", split="train", limit=3, on_error="skip"),
    evaluation=HeldOutConfig(data="other", split="val", limit=4, candidates=0, latency_repeats=1, generate_limit=2),
    train=TrainConfig(
        weights=weights("kd.lm=0.5,hr=2,itc"),
        start_term_at={"itc": 4},
        layers={"fusion": ((5, 1), (-1, 0))},
        momentum=0.9,
        queue=8,
        cache=True,
        learn_teacher_projection=False,
        seed=7,
        epochs=2.5,
    ),
)


def test_json_holds_the_experiment():
    values = json.loads(json.dumps(FULL_OF_OPTIONS.to_dict()))
    assert ExperimentConfig.from_dict({**values, "model": {}, "inputs": {}}) == FULL_OF_OPTIONS
    evaluation = EvaluationConfig("m", ("vqa",), 5, "bf16", DataConfig(limit=2), MeasureConfig(3, 4, 5), True)
    assert EvaluationConfig.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation


def test_the_command_line_builds_the_experiment():
    assert from_command(FULL_OF_OPTIONS.command("x")) == FULL_OF_OPTIONS
    assert from_command("dlip train --size s --out x") == ExperimentConfig("s")
    how = MeasureConfig(3, 4, 5)
    evaluation = EvaluationConfig(
        "m", ("vqa", "retrieval"), 5, "bf16", DataConfig("a", "b"), how, bounds=True, rerank="decoder"
    )
    assert parse(shlex.split(evaluation.command())[1:])[1].evaluation == evaluation


@pytest.mark.parametrize("plan", [FULL, QUICK])
@pytest.mark.parametrize("name", GRIDS)
def test_the_command_of_a_grid_row_builds_its_experiment(name, plan):
    for row in (row for row in GRIDS[name].rows if row.weights):
        experiment = row.experiment(plan, 2, f"{name}: {row.name}")
        assert from_command(experiment.command("x")) == comparable(experiment)
        assert experiment.train == row.train(plan, 2) and experiment.role == row.role


@pytest.mark.parametrize("file", SHIPPED, ids=lambda path: path.stem)
def test_shipped_records_hold_experiments_and_commands(file):
    for record in records.read(file):
        if REMOVED_OPTIONS["train"].keys() & record["config"]["train"].keys():
            continue  # no experiment of this version
        experiment = ExperimentConfig.from_dict(record["config"])
        if "evaluation" in record:  # of a model that was trained before, in a grid by another name
            evaluation = EvaluationConfig.from_dict(record["evaluation"])
            assert evaluation == parse(shlex.split(record["command"])[1:])[1].evaluation
            continue
        assert (experiment.name, experiment.role) == (record["name"], record["role"])
        assert experiment.evaluation.split == record["split"]
        typed = from_command(record["command"])
        assert typed.train == comparable(experiment).train
        assert typed.init_from == experiment.init_from and typed.data.limit == experiment.data.limit


def test_an_upgraded_configuration_and_a_new_one_share_a_hash():
    """Of a record of schema 1: with the experiment that its command builds today."""
    found = {record["name"]: record for record in records.read(ROOT / "results" / "tuning" / "scenes.jsonl")}
    record = found["u1000-4000-lr6e-3"]
    values = from_command(record["command"]).to_dict()
    assert records.config_hash({"model": record["config"]["model"], **values}) == record["config_hash"]


def test_roles_and_teachers_agree():
    with pytest.raises(UserError, match="role is 'distilled' with teacher None"):
        ExperimentConfig("s", role="distilled")
    with pytest.raises(UserError, match="role is 'undistilled' with teacher t"):
        ExperimentConfig("s", teacher="t")
    with pytest.raises(UserError, match="the experiment configuration has no size"):
        ExperimentConfig.from_dict({"teacher": None})


def test_records_names_say_how_a_model_was_evaluated():
    assert EvaluationConfig("scenes/student").differences("fp32") == []
    config = EvaluationConfig("scenes/student", precision="int8", beams=5, tasks=("captioning", "vqa"))
    assert config.differences("int8") == ["int8", "5 beams", "captioning and vqa"]
    config = EvaluationConfig("a", tasks=("vqa", "captioning", "retrieval"), measure=MeasureConfig(candidates=0))
    assert config.differences("fp32") == ["by ITC alone"]
    config = EvaluationConfig("a", measure=MeasureConfig(candidates=16, generate_limit=50))
    assert config.differences("fp32") == ["texts of 50 images", "16 candidates"]
