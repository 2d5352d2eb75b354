"""The paper's recipes: what they set, that typed options win, and that every stage trains."""

import json
import re

import pytest

from dlip.cli import main, parse
from dlip.common.errors import UserError
from dlip.experiments.config import ExperimentConfig
from dlip.training.recipes import RECIPES
from dlip.training.weights import distills, weights
from tests.helpers import ROOT

AT, HR = weights("at"), weights("hr")

PAGE = (ROOT / "docs" / "training.md").read_text()


def experiment(*words: str) -> ExperimentConfig:
    return parse([*words, "--out", "x", *(["--teacher", "t"] if words[0] == "distill" else [])])[1].experiment


@pytest.mark.parametrize("name", RECIPES)
def test_teacher_only_adds_terms(name):
    alone, distilled = experiment("train", "--recipe", name), experiment("distill", "--recipe", name)
    assert distilled.replace(train=alone.train, teacher=None, role="undistilled") == alone
    assert distilled.train.replace(weights=alone.train.weights) == alone.train
    added = distilled.train.weights.keys() - alone.train.weights.keys()
    assert added == {*distills(distilled.train.weights)} and not distills(alone.train.weights)


def test_recipes_have_the_papers_values():
    pretrain = experiment("distill", "--recipe", "pretrain")
    config = pretrain.train
    assert (config.lr, config.decay, config.schedule, config.weight_decay) == (5e-4, 0.85, "epoch", 0.02)
    terms = {**dict.fromkeys(("itc", "itm", "lm", *AT), 1.0), **dict.fromkeys(HR, 0.25)}  # L_HR is a mean
    assert config.weights == terms and config.momentum and config.epochs == 20
    assert pretrain.size == "dlip-small"
    assert {experiment("distill", "--recipe", name).train.optimizer for name in RECIPES} == {"adamw"}
    for name in RECIPES.keys() - {"pretrain"}:
        assert experiment("train", "--recipe", name).size == "dlip-small:image_size=384"


def test_options_override_a_recipe_in_any_position():
    for words in (["--lr", "1", "--recipe", "vqa"], ["--recipe", "vqa", "--lr", "1"]):
        config = experiment("train", *words, "--weights", "lm").train
        assert (config.lr, config.weights, config.epochs) == (1.0, {"lm": 1.0}, 10)
    config = experiment("train", "--steps=3", "--recipe=vqa").train
    assert (config.steps, config.epochs, config.weights) == (3, None, {"vqa": 1.0})
    config = experiment("distill", "--recipe", "vqa", "--no-augment", "--no-flip", "--cache").train
    assert not config.augment and not config.flip
    with pytest.raises(UserError, match="unrecognized arguments: --rec vqa; see dlip train --help"):  # no abbreviations
        experiment("train", "--rec", "vqa", "--size", "scenes-student")


def test_every_recipe_is_documented():
    assert set(re.findall(r"^dlip \w+ --recipe (\w+)", PAGE, re.MULTILINE)) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_trains(name, tmp_path, capsys):
    small = ["--size", "scenes-student:image_width=16,text_width=16", "--limit", "16", "--batch-size", "8"]
    small += ["--steps", "2", "--workers", "0", "--precision", "fp32", "--test-split", "val", "--test-limit", "16"]
    small += ["--candidates", "4", "--latency-repeats", "0"] + ["--queue", "16"] * ("queue" in RECIPES[name].train)
    words = ["distill", "--recipe", name, "--teacher", "scenes/teacher", *small, "--out", str(tmp_path / "run")]
    assert main([*words, "--results", str(tmp_path / "records.jsonl"), "--json", "-"]) == 0
    losses = json.loads(capsys.readouterr().out)["losses"]
    recipe = RECIPES[name]
    assert losses.keys() - {"step", "total"} == weights(f"{recipe.task_terms},{recipe.teacher_terms}").keys()


def test_invalid_recipes_are_refused(capsys):
    for words, sentence in (
        (["--recipe", "soup"], "invalid choice: 'soup'"),
        (["--steps", "3", "--epochs", "2", "--size", "scenes-student"], "pass one of them"),
        (["--epochs", "0", "--size", "scenes-student"], "--epochs is 0.0; give a number, above 0"),
        (["--epochs", "nan", "--size", "scenes-student"], "--epochs is nan; it has to be a number"),
    ):
        assert main(["train", "--out", "x", *words]) == 2
        assert sentence in capsys.readouterr().err
