"""The comparison with ImageFolder, on a stand-in for it where torchvision is not installed."""

import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from dlip.data.scenes import Scenes
from dlip.data.speed import compare
from dlip.data.write import write_folder
from dlip.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DLIP_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "set", {"val": Scenes("val", size=6)})
    return tmp_path / "set"


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
    found = compare(folder, "val", pictures=4, rounds=2)
    assert len(read) == 12 and len(set(read)) == 4  # a round before the two that count
    assert found["pictures"] == 4 and set(found["per_s"]) == {"ImageFolder", "shards", "folder"}
    assert all(speed > 0 for speed in [*found["per_s"].values(), *found["times_ImageFolder"].values()])


def test_without_torchvision(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match="pip install torchvision"):
        compare(folder, "val")
