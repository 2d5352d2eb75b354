"""`dlip evaluate --optimize` scores what the fastest backend gives, with the metrics of `dlip evaluate`."""

import json

import pytest

from dlip.cli import main
from dlip.export import optimize as module
from dlip.vlm import VLM
from tests.helpers import reuse_graphs

SCORES = ("retrieval", "captioning", "vqa")


@pytest.mark.parametrize("backend", ["dlip, packed", "onnxruntime"])
def test_scores_are_those_of_the_model(backend, tmp_path, monkeypatch, request):
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


@pytest.mark.parametrize("option", ["--precision bf16", "--bounds", "--answers file", "--results file"])
def test_options_of_the_plain_evaluation_are_refused(option, capsys):
    option = option.split()
    assert main(["evaluate", "--model", "scenes/student", "--optimize", *option]) == 2
    assert f"--optimize and {option[0]} exclude each other" in capsys.readouterr().err
