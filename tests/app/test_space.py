"""A folder for Hugging Face Spaces: it runs by itself, and replaces nothing else."""

import subprocess
import sys

import gradio as gr
import pytest
import yaml

from app import space


def test_a_space_runs_by_itself(tmp_path):
    space.write(tmp_path / "space")
    _, card, _ = (tmp_path / "space" / "README.md").read_text().split("---\n")
    card = yaml.safe_load(card)
    assert card["sdk"] == "gradio" and card["sdk_version"] == gr.__version__
    needed = (tmp_path / "space" / "requirements.txt").read_text().split()
    assert any(line.startswith("gradio>=") for line in needed) and any(line.startswith("torch>=") for line in needed)
    code = "import app.page; print(app.page.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "space", capture_output=True, text=True)
    assert run.stdout.strip() == str(tmp_path / "space" / "app" / "page.py"), run.stderr
    compile((tmp_path / "space" / card["app_file"]).read_text(), card["app_file"], "exec")


def test_a_space_replaces_only_a_space(tmp_path, capsys):
    new, other = tmp_path / "new", tmp_path / "other"
    for folder in (new, other):
        (folder / ".git").mkdir(parents=True)  # a clone
    (other / "app").mkdir()
    (other / "app" / "mine.py").write_text("mine")
    assert space.run([str(new)]) == 0
    (new / "app" / "old.py").write_text("old")
    assert space.run([str(new)]) == 0 and (new / ".git").is_dir() and not (new / "app" / "old.py").exists()
    assert "safetensors filter=lfs" in (new / ".gitattributes").read_text()
    assert space.run([str(other)]) == 2 and (other / "app" / "mine.py").read_text() == "mine"
    assert f"{other} is not empty and not a Space; name a new folder" in capsys.readouterr().err
    assert space.run([str(space.ROOT / "app" / "space")]) == 2 and not (space.ROOT / "app" / "space").exists()
    assert "lies in a folder that is copied" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        space.run(["--help"])
