"""Benchmarks: what they compare, and that a record tells it; never how fast it was."""

import json
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from dlip import bench
from dlip.bench import reading, step, training
from dlip.cli import main
from dlip.data.scenes import Scenes
from dlip.data.write import write_folder
from dlip.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DLIP_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "set", {"val": Scenes("val", size=6)})
    return tmp_path / "set"


def test_a_ratio_says_how_many_times_as_fast():
    assert bench.row("b", [2.0, 4.0, 9.0], [4.0, 8.0, 9.0], "s") == dict(name="b", s=4.0, s_min=2.0, s_max=9.0, ratio=2)
    assert bench.row("b", [2.0, 4.0, 9.0], [4.0, 8.0, 9.0], "pictures_per_s")["ratio"] == 0.5


def test_the_command_prints_a_table_and_appends_a_record(tmp_path, capsys):
    words = ["bench", "captioning", "--rounds", "1", "--results", str(tmp_path / "bench.jsonl")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "ms", "ms_p95", "ratio", "params_m"] and len(lines) == 6
    record = json.loads((tmp_path / "bench.jsonl").read_text())
    assert (record["bench"], record["command"]) == ("captioning", "dlip " + " ".join(words))
    assert [row["name"] for row in record["rows"]] == [
        "scenes/teacher", "scenes/student", "scenes/student-undistilled"
    ]  # fmt: skip
    assert record["rows"][0]["ratio"] == 1 and record["settings"]["beams"] == 3 and record["machine"]["cores"] > 0


def test_the_step_is_timed_in_both_precisions():
    settings, rows = training.run(rounds=1)
    assert [row["name"] for row in rows] == ["fp32", "bf16"] and all(row["s"] > 0 for row in rows)
    assert settings["terms"] == "vlp,hr,at,kd"


def test_every_reader_reads_the_same_pictures(folder, monkeypatch):
    read = []

    class ImageFolder:
        def __init__(self, root):
            self.files = sorted(Path(root).rglob("*.png"))

        def __getitem__(self, i):
            read.append(self.files[i].name)
            return Image.open(self.files[i]).convert("RGB"), 0

    module = types.ModuleType("torchvision.datasets")
    module.ImageFolder = ImageFolder
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    monkeypatch.setattr(reading, "PICTURES", 4)
    settings, rows = reading.run(str(folder), rounds=2)
    assert len(read) == 12 and len(set(read)) == 4  # a round before the two that count
    assert settings["pictures"] == 4 and [row["name"] for row in rows] == ["ImageFolder", "shards", "folder"]
    assert all(row["pictures_per_s"] > 0 for row in rows)


def test_without_torchvision_or_folder(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match="pip install torchvision"):
        reading.run(str(folder))
    with pytest.raises(UserError, match="--data"):
        reading.run()


def test_the_big_step_reads_as_many_words_as_bert(scenes):
    assert len(step.words(scenes)) == 30_524


def test_unknown():
    with pytest.raises(UserError, match="no benchmark 'x'"):
        bench.bench("x")
