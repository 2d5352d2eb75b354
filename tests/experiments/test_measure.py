"""Models are measured on held-out data: scores, times and memory, in torch and as the fastest backends run them."""

import itertools
import json
from dataclasses import replace

import pytest

from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.dataset import FirstN
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.measure import held_out, measure
from dlip.experiments.run import new_model, train_tokenizer
from dlip.export import optimize as module
from dlip.models.med import Med
from dlip.vlm import VLM
from tests.helpers import reuse_graphs

SCORES = ("retrieval", "captioning", "vqa")


def test_a_model_too_short_for_the_timed_text_is_scored_without_its_time(scenes):
    words = train_tokenizer(scenes)
    short = new_model("scenes-student:max_positions=20,max_text=20", words, 0)
    figures, _ = measure(short, scenes, 1, progress=False, tasks=("vqa",))
    assert figures["vqa"] and "21 tokens exceed the model's 20 positions" in figures["notes"]["latency"]


def test_a_model_without_cross_attention_is_measured_without_its_maps(tiny, scenes):
    blind = VLM(Med(replace(tiny.med.config, fusion_layers=())), tiny.tokenizer)
    blind.med.abilities = {"itc", "itm", "lm", "vqa"}
    figures, _ = measure(blind, FirstN(scenes, 2), 0, progress=False, teacher=tiny, tasks=("retrieval",))
    assert "attention" not in figures
    figures, _ = measure(tiny, FirstN(scenes, 2), 0, progress=False, teacher=blind, tasks=("retrieval",))
    assert "divergence" not in figures["attention"]["fusion"]


def test_latency_is_compared_with_the_teachers(tiny, scenes, monkeypatch):
    clock = {"teacher": 8.0, "model": 2.0}  # ms of each call
    monkeypatch.setattr("dlip.cost.latency.Workload.__call__", lambda work: None)
    monkeypatch.setattr("dlip.cost.latency._time", lambda call, device: next(turns))
    turns = itertools.cycle(clock.values())
    figures, _ = measure(tiny, scenes, latency_repeats=3, progress=False, teacher=tiny, tasks=("vqa",))
    assert figures["efficiency"]["latency"]["share"] == 25 and figures["efficiency"]["latency"]["p50_ms"] == 2
    alone, _ = measure(tiny, scenes, latency_repeats=3, progress=False, tasks=("vqa",))
    assert "share" not in alone["efficiency"]["latency"]
    taken = alone["efficiency"]["memory"]  # of calls that do nothing here
    assert taken["peak_mb"] == 0 and taken["weights_mb"] == pytest.approx(4 * alone["efficiency"]["params_m"])


def test_held_out_split(tmp_path):
    assert held_out("scenes") == "test"
    (tmp_path / "images").mkdir()
    (tmp_path / "vqa.json").write_text('[{"image": "a.png", "question": "q", "answers": ["a"], "split": "val"}]')
    assert held_out(str(tmp_path)) == "val"
    (tmp_path / "vqa.json").write_text('[{"image": "a.png", "question": "q", "answers": ["a"], "split": "train"}]')
    with pytest.raises(UserError, match="neither a test nor a val split .* only train; .*--test-data"):
        held_out(str(tmp_path))


def test_evaluate_takes_the_held_out_split(tmp_path, capsys):
    write_folder(tmp_path / "set", {"train": Scenes("train-small", size=4), "val": Scenes("val", size=4)})
    measured = "evaluate --model scenes/student --tasks retrieval --latency-repeats 0 --json -".split()
    assert main([*measured, "--data", str(tmp_path / "set")]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "val"
    write_folder(tmp_path / "more", {"train": Scenes("train-small", size=4)})
    assert main([*measured, "--data", str(tmp_path / "more")]) == 2
    assert "name one with --split, or other data with --data" in capsys.readouterr().err


def test_models_are_measured_on_the_accelerator(tiny, scenes, monkeypatch):
    placed = []
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: "the fast one")
    monkeypatch.setattr(Med, "to", lambda med, place: placed.append(place))
    measure(tiny, FirstN(scenes, 2), 0, False, teacher=tiny, tasks=("vqa",))
    assert placed == ["the fast one"] * 2


@pytest.mark.parametrize("backend", ["dlip, packed", "onnxruntime"])
def test_the_fastest_backend_scores_as_the_model_does(backend, tmp_path, monkeypatch, request):
    if backend == "onnxruntime":
        graphs = request.getfixturevalue("exported_student")
        monkeypatch.setattr("dlip.export.onnx_export.trace", reuse_graphs(graphs))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(module, "BACKENDS", (backend,))
    monkeypatch.setattr(module, "MAX_ROUNDS", 1)
    VLM.load("scenes/student").save("model")
    figures = []
    for option in ("--optimize", "--latency-repeats=0"):
        assert main(["evaluate", "--model", "model", "--limit", "4", option, "--json", "figures.json"]) == 0
        figures.append(json.loads((tmp_path / "figures.json").read_text()))
    optimized, plain = figures
    assert {task: optimized[task] for task in SCORES} == {task: plain[task] for task in SCORES}
    assert optimized["model"] == f"model by {backend} in fp32"
    assert [(one["backend"], one["precision"]) for one in optimized["optimized"]] == [(backend, "fp32")]
    assert optimized["optimized"][0]["ms"]["caption, 8"] > 0


@pytest.mark.parametrize("option", ["--precision bf16", "--bounds", "--rerank decoder", "--results file"])
def test_optimize_refuses_options_of_the_plain_evaluation(option, capsys):
    option = option.split()
    assert main(["evaluate", "--model", "scenes/student", "--optimize", *option]) == 2
    assert f"--optimize and {option[0]} exclude each other" in capsys.readouterr().err
