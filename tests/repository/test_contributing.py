"""The examples of CONTRIBUTING.md work: a data set, a grid, and a loss term added to a copy of the package."""

import re
from dataclasses import replace

import pytest

from dlip.cli import main
from dlip.experiments import grids
from dlip.losses import TERMS
from tests.helpers import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(language: str, heading: str) -> list[str]:
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def test_add_a_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks("python", "Add a data set"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    assert names["run"].log["step"].iloc[-1] == 2
    assert 0 <= names["metrics"]["vqa"]["accuracy"] <= 100 and capsys.readouterr().out


@pytest.mark.slow
def test_add_a_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(grids.GRIDS, "text-states", None)  # so that the example's grid is gone afterwards
    for block in blocks("python", "Add a grid"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), {})
    (line,) = blocks("bash", "Add a grid")
    short = replace(grids.QUICK, train=grids.QUICK.train.replace(steps=2, warmup=1), test_images=4)
    monkeypatch.setattr("dlip.experiments.grids.QUICK", short)
    assert main([*line.split()[1:], "--only", "weight 4"]) == 0
    assert "weight 4" in capsys.readouterr().out


def test_add_a_loss_term(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    term, example = blocks("python", "Add a loss term")
    assert len(term.splitlines()) <= 40
    try:
        for block in (term, example):
            exec(compile(block, "CONTRIBUTING.md", "exec"), names)
        assert float(capsys.readouterr().out) > 0
        assert "rkd" in str(names["run"].plot())
    finally:
        TERMS.pop("rkd", None)
