"""The paper's road: recipes parse, what is typed wins, the page's commands are commands, and every stage learns."""

import json
import re
import shlex

import pytest

from dlip.cli import main, parser
from dlip.commands import train_config
from dlip.common.errors import UserError
from dlip.training.recipes import RECIPES, recipe
from dlip.training.terms import AT, HR
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text()
PLACE = ["--out", "x", "--teacher", "t"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_teacher_adds_terms_and_changes_nothing_else(name):
    alone = parser().parse_args(["train", "--recipe", name, "--out", "x"])
    taught = parser().parse_args(["distill", "--recipe", name, *PLACE])
    ours, theirs = train_config(alone), train_config(taught)
    assert theirs.replace(weights=ours.weights) == ours
    handed = theirs.weights.keys() - ours.weights.keys()
    assert handed and all("." in term for term in handed) and not any("." in term for term in ours.weights)
    assert (alone.epochs, alone.size) == (taught.epochs, taught.size)


def test_what_the_paper_states():
    args = parser().parse_args(["distill", "--recipe", "pretrain", *PLACE])
    config = train_config(args)
    assert (config.lr, config.decay, config.schedule, config.weight_decay) == (5e-4, 0.85, "epoch", 0.02)
    terms = {**dict.fromkeys(("itc", "itm", "lm", *AT), 1.0), **dict.fromkeys(HR, 0.25)}  # L_HR is a mean
    assert config.weights == terms and config.momentum
    assert args.size == "dlip-small"
    for name in RECIPES.keys() - {"pretrain"}:
        assert parser().parse_args(["train", "--recipe", name, "--out", "x"]).size == "dlip-small:image_size=384"


def test_what_is_typed_wins_wherever_it_stands():
    for words in (["--lr", "1", "--recipe", "vqa"], ["--recipe", "vqa", "--lr", "1"]):
        args = parser().parse_args(["train", *words, "--out", "x", "--weights", "lm"])
        assert (args.lr, args.weights, args.epochs) == (1.0, "lm", recipe("vqa").epochs)
    for words in (["--recipe", "vqa", "--steps", "3"], ["--steps=3", "--recipe=vqa"]):
        args = parser().parse_args(["train", "--out", "x", *words])
        assert (args.steps, args.epochs, args.weights) == (3, None, "vqa")
    args = parser().parse_args(["distill", "--recipe", "vqa", "--no-augment", "--no-flip", "--cache", *PLACE])
    assert not train_config(args).augment and not train_config(args).flip
    with pytest.raises(
        UserError, match="unrecognized arguments: --rec vqa"
    ):  # a name cut short would not be seen to be a recipe
        parser().parse_args(["train", "--out", "x", "--rec", "vqa", "--size", "scenes-student"])


def test_every_command_of_the_page_is_one():
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dlip ")]
    found = [words for words in found if "--recipe" in words]
    assert {words[words.index("--recipe") + 1] for words in found} == set(RECIPES)
    assert all(parser().parse_args(words).teacher.startswith("Salesforce/") for words in found)


@pytest.mark.parametrize("name", RECIPES)
def test_a_stage_learns_from_the_one_before(name, tmp_path, capsys):
    small = ["--size", "scenes-student:image_width=16,text_width=16", "--limit", "16", "--batch-size", "8"]
    small += ["--steps", "2", "--workers", "0", "--precision", "no", "--test-split", "val", "--candidates", "4"]
    small += ["--queue", "0"] if recipe(name).task == "lm" or "vqa" in recipe(name).task else ["--queue", "16"]
    words = ["distill", "--recipe", name, "--teacher", "scenes/teacher", *small, "--out", str(tmp_path / "run")]
    words += ["--results", str(tmp_path / "records.jsonl"), "--json", "-"]
    assert main(words) == 0
    losses = json.loads(capsys.readouterr().out)["losses"]
    assert losses.keys() - {"step", "total"} == train_config(parser().parse_args(words)).weights.keys()


def test_mistakes_are_a_sentence(capsys):
    for words, sentence in (
        (["--recipe", "soup"], "there is no recipe 'soup'; choose one of pretrain"),
        (["--steps", "3", "--epochs", "2", "--size", "scenes-student"], "give one of them"),
        (["--epochs", "0", "--size", "scenes-student"], "give a positive number"),
        (["--epochs", "nan", "--size", "scenes-student"], "give a positive number"),
        (["--recipe", "vqa", "--recipe", "captioning"], "given more than once"),
    ):
        assert main(["train", "--out", "x", *words]) == 2
        assert sentence in capsys.readouterr().err
