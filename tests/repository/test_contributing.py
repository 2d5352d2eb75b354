"""The examples of CONTRIBUTING.md work: a data set, a grid, and a loss term added to a copy of the package."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dlip.cli import main
from dlip.experiments import grids
from tests.helpers import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(language: str, heading: str) -> list[str]:
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def apply(diff: str, folder: Path) -> None:
    """Apply a diff of one hunk, without line numbers, to the file that its first line names."""
    first, *lines = diff.splitlines(keepends=True)
    path = folder / first.removeprefix("--- ").strip()
    before = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
    after = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
    assert path.read_text().count(before) == 1, f"CONTRIBUTING.md's diff does not match {path.name}:\n{before}"
    path.write_text(path.read_text().replace(before, after))


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


def test_add_a_loss_term(tmp_path):
    shutil.copytree(ROOT / "dlip", tmp_path / "dlip", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in blocks("diff", "Add a loss term"):
        apply(diff, tmp_path)
    (example,) = blocks("python", "Add a loss term")
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout) > 0
