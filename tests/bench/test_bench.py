"""Benchmarks: their variants and records, never their speed."""

import json
import multiprocessing.dummy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from dlip import bench, data
from dlip.bench import backends, demo, growth, modules, precision, reading, reranking, search, step, training
from dlip.bench import scenes as drawn
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.export import onnx_export, optimize
from dlip.models.config import ModelConfig
from dlip.records import TABLE_SCORES
from tests.helpers import reuse_graphs


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "set", {"val": Scenes("val", size=6)})
    return tmp_path / "set"


def test_ratio_is_relative_speed():
    assert bench.row("b", [2.0, 4.0, 9.0], [4.0, 8.0, 9.0], "s") == dict(name="b", s=4.0, s_min=2.0, s_max=9.0, ratio=2)
    assert bench.row("b", [2.0, 4.0, 9.0], [4.0, 8.0, 9.0], "images_per_s")["ratio"] == 0.5


def test_command_prints_a_table_and_appends_a_record(tmp_path, capsys):
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
    assert record["machine"]["instructions"].startswith(torch.backends.cpu.get_cpu_capability())


def test_bench_all_runs_every_benchmark(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        bench, "bench", lambda name, command, **calls: {"bench": name, "rows": [{"name": name, **calls}]}
    )
    words = ["bench", "all", "--rounds", "1", "--results", str(tmp_path / "all.jsonl")]
    assert main([*words, "--json", "-"]) == 0
    made = json.loads(capsys.readouterr().out)["records"]
    assert [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()] == made
    assert [(record["bench"], record["rows"][0]["rounds"]) for record in made] == [
        (name, 1) for name in bench.BENCHES if name != "reading"
    ]


def test_training_step_is_timed_and_profiled(monkeypatch):
    monkeypatch.setattr(training, "BATCH", 8)
    settings, rows = training.run(rounds=1)
    assert [row["name"] for row in rows[:3]] == ["fp32", "bf16", "bf16, known"] and all(row["s"] > 0 for row in rows)
    assert settings["terms"] == "vlp,hr,at,kd"
    assert [row["name"] for row in rows[3:]] == [
        f"bf16, known: {kind}" for kind in ("products", "copies and casts", "all others")
    ]
    assert abs(sum(row["share"] for row in rows[3:]) - 100) <= 1


def test_profile_separates_products_from_copies():
    a, b = torch.randn(1500, 1000), torch.randn(1000, 500)  # milliseconds, as rows have tenths of one
    rows = training.profiled("x", lambda: (a @ b).bfloat16().relu(), rounds=4)
    kinds = [row["name"].removeprefix("x: ") for row in rows]
    assert kinds == ["products", "copies and casts", "all others"]
    assert [row["calls"] for row in rows[:2]] == [1, 1]
    assert rows[0]["gflops"] == pytest.approx(2 * 1500 * 1000 * 500 / rows[0]["s"] / 1e9, rel=0.5)


def test_no_scene_is_rendered_twice(monkeypatch):
    """Scenes are cached."""
    calls, scene, item = [], Scenes.scene, Scenes.__getitem__
    monkeypatch.setattr(Scenes, "scene", lambda data, i: calls.append(i) or scene(data, i))
    monkeypatch.setattr(Scenes, "__getitem__", lambda data, i: calls.append(i) or item(data, i))
    monkeypatch.setattr("dlip.bench.scenes.IMAGES", 5)
    settings, rows = drawn.run(rounds=2)
    assert calls == list(range(30)) and settings == {"images": 5, "rounds": 2}
    assert [row["name"] for row in rows] == ["pixels", "with texts"] and rows[0]["images_per_s"] > 0


def test_every_reader_reads_the_same_images(folder, monkeypatch):
    pytest.importorskip("datasets")  # before torchvision is replaced, which it looks for
    seen, plain = {}, reading._read

    class ImageFolder:
        def __init__(self, root):
            self.files = sorted(Path(root).rglob("*.png"))

        def __getitem__(self, i):
            return Image.open(self.files[i]).convert("RGB"), 0

    class Recorded:
        def __init__(self, dataset):
            self.dataset, self.images = dataset, []

        def __getitem__(self, i):
            item = self.dataset[i]
            self.images.append((item[0] if isinstance(item, tuple) else item.image).tobytes())
            return item

    def read(dataset, order: list[int]) -> None:
        recorded = Recorded(dataset)
        plain(recorded, order)
        seen.setdefault(type(dataset).__name__, []).append(recorded.images)

    monkeypatch.setattr(reading, "_read", read)
    module = types.ModuleType("torchvision.datasets")
    module.ImageFolder = ImageFolder
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    monkeypatch.setattr(reading, "IMAGES", 4)
    settings, rows = reading.run(str(folder), rounds=2)
    (first, *_) = seen["ImageFolder"]
    assert len(set(first)) == 4
    assert seen == dict.fromkeys(("ImageFolder", "Table", "Folder"), [first] * 3)  # a warm-up round, two that count
    assert settings["images"] == 4 and [row["name"] for row in rows] == ["ImageFolder", "shards", "folder"]
    assert all(row["images_per_s"] > 0 for row in rows)


def test_reading_needs_torchvision_and_a_folder(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match="pip install torchvision"):
        reading.run(str(folder))
    with pytest.raises(UserError, match="--data"):
        reading.run()


def test_step_has_the_size_of_berts_vocabulary(scenes):
    assert len(step.bert_sized_tokenizer(scenes)) == 30_524


def test_steps_with_other_losses_are_refused():
    plain = {"plain": {"itc": 2.0, "hr.image": 1e-4}}
    step.check_equal(plain)
    step.check_equal(plain | {"fp32": {"itc": 2.001, "hr.image": 3e-4}, "bf16": {"itc": 2.1}})
    for name, loss in (("fp32", 2.01), ("bf16", 2.3), ("bf16, cached teacher", float("nan"))):
        with pytest.raises(UserError, match=rf"itc is {loss:.4g} in a step {name}, 2 in a plain one"):
            step.check_equal(plain | {name: {"itc": loss}})


@pytest.mark.parametrize("code", [0, 2])
def test_demo_runs_in_its_own_process(code, monkeypatch):
    calls = []

    def run(words, **_):
        calls.append(words[2:4])
        return subprocess.CompletedProcess(words, code, "", "dlip: the disk is full")

    monkeypatch.setattr("subprocess.run", run)
    if code:
        with pytest.raises(UserError, match="the demo failed: dlip: the disk is full"):
            demo.run()
    else:
        settings, rows = demo.run(rounds=2)
        assert settings["rounds"] == 2 and [row["name"] for row in rows] == ["dlip demo"]
    assert calls == [["dlip", "demo"]] * (1 if code else 2)


def test_reranking_variants_rank_the_same(monkeypatch):
    monkeypatch.setattr(reranking, "K", 3)
    monkeypatch.setattr(step, "bert_sized_tokenizer", lambda dataset: Tokenizer.train(dataset.texts(50), 200))
    monkeypatch.setattr(reranking, "random_model", lambda size: step.random_model("scenes-student"))
    settings, rows = reranking.run(rounds=1, images=6)
    names = ["stock", "plain", "here", "products", "attention", "copies and casts", "all others"]
    assert [row["name"].split(": ")[-1] for row in rows] == names * 2
    assert (rows[0]["images"], rows[0]["captions"], rows[7]["captions"], settings["candidates"]) == (6, 30, 10, 3)
    assert sum(row["share"] for row in rows[3:7]) == pytest.approx(100, abs=2) and rows[3]["calls"] > 0
    padded = (6 + 30) * 3 * reranking.TOKENS
    assert [row["tokens"] for row in rows[:2]] == [padded, padded] and 0 < rows[2]["tokens"] < padded
    monkeypatch.setattr(reranking, "_ranks", lambda *side: torch.rand(3))
    with pytest.raises(UserError, match="ranks of .* differ between here and the plain loops"):
        reranking.run(rounds=1, images=6)
    monkeypatch.setattr(reranking, "by_stock", lambda stock, first, ids, mask, states: torch.zeros(len(ids)))
    with pytest.raises(UserError, match="scores of .* differ between stock and the plain loops"):
        reranking.run(rounds=1, images=6)


def test_search_at_growing_sizes(monkeypatch):
    monkeypatch.setattr(search, "IMAGES", 80)
    monkeypatch.setattr(search, "SHARES", (4, 1))
    monkeypatch.setattr(search, "get_context", lambda method: multiprocessing.dummy)  # a thread for each, no process
    _, rows = search.run(rounds=1)
    assert [row["name"] for row in rows] == ["20 x 100", "80 x 400"]
    assert all(row["growth_gb"] >= 0 and row["pairs_per_s"] > 0 for row in rows)


@pytest.fixture
def small(monkeypatch):
    name = "scenes-student:image_width=32,text_width=32,image_layers=1,text_layers=1"
    monkeypatch.setattr(step, "bert_sized_tokenizer", lambda dataset: Tokenizer.train(dataset.texts(50), 200))
    monkeypatch.setattr(modules, "SIZES", (name,))
    monkeypatch.setattr(growth, "SIZE", name)
    monkeypatch.setattr(growth, "DEFAULTS", dict(batch=1, image_size=48, tokens=4, beams=2))
    monkeypatch.setattr(growth, "VARIED", {"batch": (1, 2), "image_size": (32, 48), "tokens": (2,), "beams": (1,)})


def test_optimized_models_keep_scores(folder, monkeypatch):
    monkeypatch.setattr(optimize, "BACKENDS", ("dlip, packed",))
    monkeypatch.setattr(optimize, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(optimize, "MAX_ROUNDS", 1)
    monkeypatch.setattr(precision, "built_in_models", lambda kind: ["scenes/student"])
    sets = {"scenes": Scenes("test", size=12), "photos": data.open(str(folder), "val")}
    rows = precision.optimized(sets, rounds=1)
    names = ["scenes/student", "scenes/student by dlip, packed in fp32"]
    assert [row["name"] for row in rows] == 2 * names
    assert all(row["kept"] == 100 and row["ms"] > 0 for row in rows) and "facts_f1" in rows[0]
    assert rows[1]["again"] == 1 and [*rows[1]["candidates"]] == ["dlip, packed in fp32"]
    assert rows[1]["picks"].keys() == {f"{what}, {size}" for what, sizes in optimize.SIZES.items() for size in sizes}


def test_a_pick_is_compared_with_the_fastest_of_a_second_run(monkeypatch):
    times = [({"a": 1.0}, {"a": 2.0}), ({"a": 3.0}, {"a": 2.0})]
    made = optimize.Candidate
    runs = iter([None, [made("x", "fp32", x), made("y", "bf16", y), made("z", "int8")]] for x, y in times)
    monkeypatch.setattr(precision, "optimize", lambda vlm, cache: next(runs))
    _, about = precision.optimized_twice(None, "")
    assert about == {
        "candidates": {"x in fp32": {"a": 1.0}, "y in bf16": {"a": 2.0}}, "picks": {"a": "x in fp32"}, "again": 1.5,
    }  # fmt: skip


@pytest.mark.slow
def test_precisions_keep_scores(exported_student, monkeypatch):
    monkeypatch.setattr(onnx_export, "trace", reuse_graphs(exported_student))
    monkeypatch.setattr(precision, "built_in_models", lambda kind: [])
    settings, rows = precision.run(rounds=1, images=12)
    assert [row["name"] for row in rows] == ["fp32", "bf16", "onnx", "onnx-int8"] and settings["images"] == 12
    assert rows[0]["kept"] == 100 and rows[0]["mb"] > rows[1]["mb"] > rows[3]["mb"]
    assert all(row["kept"] > 80 and row["ms"] > 0 for row in rows)
    assert all(rows[2][score] == rows[0][score] for score in TABLE_SCORES)


def test_modules_beside_peak_speed(small, monkeypatch):
    monkeypatch.setattr(modules, "SIDE", 64)
    monkeypatch.setattr(modules, "BYTES", 1 << 16)
    _, rows = modules.run(rounds=1)
    assert [row["name"] for row in rows[:3]] == ["product, fp32", "product, bf16", "reading"]
    assert [row["name"].split(": ")[1] for row in rows[3:9]] == ["torch", "here"] * 3
    assert [row["name"].split(": ")[1] for row in rows[9:]] == ["image", "decoder", "decoder_step"] * 4
    assert all(("gb" in row) == row["name"].endswith(("reading", "step")) for row in rows)


def test_weights_of_a_decoding_step():
    c = ModelConfig(
        image_width=16, image_heads=2, image_layers=1, text_width=8, text_heads=2, text_layers=2, fusion_layers=(1,),
        text_mlp=24, vocab_size=50,
    )  # fmt: skip
    layer = 4 * 8 * 8 + 2 * 8 * 24
    assert modules.cost(c, "decoder_step", 8, 2)[1] == 2 * (2 * layer + 2 * 8 * 8 + 8 * 8 + 8 * 50)


def test_growth_varies_one_setting_at_a_time(small):
    _, rows = growth.run(rounds=1)
    names = [row["name"] for row in rows]
    assert names[:4] == ["batch 1", "batch 2", "image_size 32", "image_size 48"] and names[-1] == "candidates 256"
    assert rows[-1]["per"] == pytest.approx(rows[-1]["s"] / 256, abs=1e-5)


def test_options_and_unknown_benchmarks():
    assert list(bench.every({"rounds": 1})) == [name for name in bench.BENCHES if name != "reading"]
    assert bench.every({"data": "a", "rounds": 1})["reading"] == {"data": "a", "rounds": 1}
    assert bench.every({"data": "a"})["modules"] == {}
    with pytest.raises(UserError, match="no benchmark 'x'"):
        bench.bench("x")


def test_all_runs_what_can_run(tmp_path, monkeypatch, capsys):
    def run(name: str, command: str, **options) -> dict:
        if name == "backends":
            raise UserError("openvino is not installed")
        return {"bench": name, "settings": {}, "rows": []}

    monkeypatch.setattr(bench, "bench", run)
    monkeypatch.setattr(bench, "text", lambda record: record["bench"])
    assert main(["bench", "all", "--results", str(tmp_path / "r.jsonl")]) == 2
    printed = capsys.readouterr()
    assert "not run: backends: openvino is not installed" in printed.err
    assert printed.out.split() == [name for name in bench.BENCHES if name not in ("backends", "reading")]


def test_a_table_has_no_tables_in_its_cells():
    machine = {"gpu": None, "cpu": "a cpu", "cores": 2}
    rows = [{"name": "a", "ms": 1.0}, {"name": "b", "ms": 2.0, "picks": {"caption, 1": "a"}, "again": 1.1}]
    lines = bench.text({"rows": rows, "settings": {}, "machine": machine}).splitlines()
    assert lines[0].split() == ["name", "ms", "again"] and lines[2].split() == ["b", "2", "1.1"]


def test_memory_that_is_unknown(tmp_path, monkeypatch):
    """Outside of Linux."""
    monkeypatch.setattr("dlip.cost.memory.PROCESSES", tmp_path)
    assert search._measure(8, 1, 1)[2] is None
    with pytest.raises(UserError, match="/proc"):
        backends.run()
