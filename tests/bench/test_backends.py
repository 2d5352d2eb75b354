"""The benchmark of backends: its rows and its limits."""

import numpy as np
import pytest

from dlip import bench
from dlip.bench import backends as benchmark
from dlip.bench import step
from dlip.bench.backends import Cell, difference, limit_s
from dlip.common.errors import UserError
from dlip.data.tokenizer import Tokenizer
from dlip.experiments.run import new_student
from dlip.export import backends
from dlip.models.backbone import backbone_size
from dlip.models.config import ModelConfig, preset
from dlip.vlm import VLM
from tests.bench.backend_tables import footprints, times
from tests.helpers import TINY_BACKBONE


def test_limit_is_products_or_reading():
    c = ModelConfig(
        image_size=32, patch_size=16, image_width=16, image_heads=2, image_layers=1, text_width=8, text_heads=2,
        text_layers=1, fusion_layers=(0,), vocab_size=50,
    )  # fmt: skip
    image = 4 * 16 * 16 + 2 * 16 * 64
    assert limit_s(c, Cell("states", 1), "bf16", {"bf16": float("inf"), "reading": 2.0}) == image
    products = 2 * (5 * image + 2 * 5 * 5 * 16 + 4 * 3 * 16 * 16 * 16)
    assert limit_s(c, Cell("states", 3), "fp32", {"fp32": 3.0, "reading": float("inf")}) == products
    step = 4 * 8 * 8 + 2 * 8 * 32 + 2 * 8 * 8 + 8 * 8 + 8 * 50
    reading = image + 2 * 16 * 8 + benchmark.TOKENS * step
    assert limit_s(c, Cell("caption", 8), "int8", {"int8": float("inf"), "reading": 1.0}) == reading


def test_limit_reads_an_image_backbone_too():
    c = preset(TINY_BACKBONE)
    layers = 4 * c.image_width**2 + 2 * c.image_width * c.image_mlp
    reading = backbone_size(c.image_backbone, c.image_size).params + layers
    assert limit_s(c, Cell("states", 1), "int8", {"int8": float("inf"), "reading": 1.0}) == reading


def test_difference_by_precision():
    best = np.array([[[-1.0, -2.0]]]), np.array([[[2, 0]]])  # after one token of one text
    outputs = {("states", 1): np.array([1.0, 0.0]), ("pair", 8): np.array([0.0, 1.0]), ("scores", 8): best,
               ("caption", 8): [[1, 2]]}  # fmt: skip
    expected = outputs | {("log_probs", 8): np.array([[[-2.0, -6.0, -1.0]]])}
    assert difference("x", "fp32", expected, outputs) == 0
    off = {**outputs, ("pair", 8): np.array([0.0, 1.01])}
    assert difference("x", "bf16", expected, off) == pytest.approx(0.01)
    with pytest.raises(UserError, match="the pair of x differ by 0.01 from .* batch 8"):
        difference("x", "fp32", expected, off)
    lower = {**outputs, ("scores", 8): (best[0] - 0.05, best[1])}  # the best are 2 and 1 above the mean of -3
    assert difference("x", "int8", expected, lower) == pytest.approx(0.05 * (2 / 5) ** 0.5)
    nan = np.array([np.nan, 1.0])
    for output, wrong in ((("states", 1), nan), (("pair", 8), nan), (("scores", 8), (np.nan * best[0], best[1]))):
        with pytest.raises(UserError, match=f"the {output[0]} of x differ by nan from"):
            difference("x", "int8", expected, {**outputs, output: wrong})
    with pytest.raises(UserError, match="the captions of x differ from .* batch 8"):
        difference("x", "fp32", expected, {**outputs, ("caption", 8): [[1, 3]]})


def test_missing_package(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda package: package != "nncf")
    monkeypatch.setattr(backends, "CLASSES", {"OpenVINO": backends.CLASSES["OpenVINO"]})
    with pytest.raises(UserError, match=r"OpenVINO needs nncf, .* run pip install 'dlip\[bench\]'"):
        bench.bench("backends")


@pytest.mark.slow
def test_backends_take_turns_in_processes(monkeypatch):
    """This package's and stock's; tests/export/test_backends.py compares all."""
    small = "scenes-student:image_width=32,text_width=32,image_layers=1,text_layers=1"
    monkeypatch.setattr(benchmark, "RANDOM", (small,))
    monkeypatch.setattr(benchmark, "SHIPPED", ())
    monkeypatch.setattr(benchmark, "BATCHES", (2,))
    monkeypatch.setattr(step, "bert_sized_tokenizer", lambda dataset: Tokenizer.train(dataset.texts(50), 200))
    names = ("stock", "dlip", "dlip, packed")
    monkeypatch.setattr(backends, "CLASSES", {name: backends.CLASSES[name] for name in names})
    record = bench.bench("backends", rounds=1)
    rows = [row for row in record["rows"] if row.get("precision") == "bf16"]
    assert [(row["name"], row.get("output")) for row in rows] == [
        ("product, bf16", None),
        *((name, output) for output in benchmark.OUTPUT_NAMES for name in ("stock", "dlip, packed", "limit")),
        ("stock", None), ("dlip, packed", None),
    ]  # fmt: skip
    assert all(row["ratio"] > 0 for row in rows if row["name"] == "dlip, packed" and "output" in row)
    assert rows[-1]["peak_mb"] > 0 and rows[-1]["start_s"] > 0 and rows[-1]["error"] < 0.2
    assert len(times(record).splitlines()) == 2 + 9 and len(footprints(record).splitlines()) == 2 + 5


@pytest.mark.slow
def test_a_model_with_a_backbone_is_compared_with_this_package(monkeypatch, tmp_path):
    """Stock transformers has none; the rows say so."""
    new_student(TINY_BACKBONE, VLM.load("scenes/teacher"), 0).save(tmp_path / "model")
    names = ("stock", "dlip", "dlip, packed")
    monkeypatch.setattr(backends, "CLASSES", {name: backends.CLASSES[name] for name in names})
    peaks = dict.fromkeys(("fp32", "bf16", "int8", "reading"), 1e9)
    cells = [Cell("caption", 1)]
    rows = benchmark.compare("tiny", str(tmp_path / "model"), tmp_path, cells, 1, 1, peaks)
    assert {row["name"] for row in rows if "cannot" in row} == {"stock"}
    ratios = {(row["name"], row["precision"]): row["ratio"] for row in rows if "ratio" in row}
    assert ratios["dlip", "fp32"] == 1.0 and ratios.keys() >= {("dlip, packed", "fp32"), ("dlip, packed", "bf16")}
