"""Helpers of the notebooks: setup, records, controls, the live cell, images of charts."""

import base64
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output

from dlip import notebook
from dlip.cli import parse
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.experiments import ablation
from dlip.experiments.grids import FULL, INT8_TEACHER
from dlip.experiments.run import new_student
from dlip.notebook import execute, kernel, live, results
from dlip.notebook.controls import PLOTLY_MIME
from dlip.plots import term_curves
from dlip.training.learner import Learner
from dlip.training.run_folder import Run
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.helpers import ListDataset, make_record


@pytest.fixture
def displayed(monkeypatch) -> list[dict]:
    """What is displayed, and what it is changed to, in order."""
    shown: list[dict] = []

    class Handle:
        def update(self, data, raw):
            shown.append(data)

    def display(data, raw=False, display_id=False):
        shown.append(data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    return shown


# --- setup and results ------------------------------------------------------------------------------------------------


def test_setup_shows_versions_and_changes_the_folder(tmp_path, monkeypatch):
    import torch

    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("DLIP_QUICK", raising=False)
    for name in ("PATH", "HF_HUB_DISABLE_PROGRESS_BARS"):  # which it sets, so that they are put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    card = notebook.setup().data
    assert os.getcwd() == str(tmp_path)
    assert f"torch {torch.__version__.split('+')[0]}" in card and "short run" not in card
    monkeypatch.setenv("DLIP_QUICK", "1")
    assert "short run" in notebook.setup().data and os.getcwd() == str(tmp_path)


def test_figures_are_displayed_as_json():
    code = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
shell = InteractiveShell.instance()
from dlip import notebook
notebook.setup()
with capture_output() as shown:
    shell.run_cell("import plotly.graph_objects as go")
    shell.run_cell("go.Figure(layout={'title': {'text': 'Small<br>wins'}})")
print([dict(output.data) for output in shown.outputs], "nbformat" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "plotly.v1+json" in out and "'text/plain': 'Small wins'" in out and out.split()[-1] == "False", out


def test_missing_records(tmp_path, capsys):
    assert notebook.records("fusion", "init", path=tmp_path / "none.jsonl") == []
    fusion, init = capsys.readouterr().out.splitlines()
    assert "no run of the grid fusion" in fusion and "dlip ablate init" in init
    assert "no run of the grid fusion" in notebook.grid_table("fusion", []).data
    assert "no run of the grid fusion" in notebook.column_table("fusion", [], "tr1").data
    assert "missing" in notebook.advice([], 1.0).data


def test_records_are_counted(tmp_path, capsys):
    (row, *_), path = ablation.grid("fusion").rows, tmp_path / "some.jsonl"
    about = {"ablation": {"hash": ablation.identity(row, FULL)}, "wall_s": 1800.0}
    path.write_text("".join(json.dumps(make_record("it", seed=seed) | about) + "\n" for seed in range(3)))
    loaded = notebook.records("fusion", path=path)
    assert len(loaded) == 3
    assert capsys.readouterr().out == "fusion: 3 runs of 1 of 5 students, 1.5 hours of training\n"
    table = notebook.grid_table("fusion", loaded)
    assert table.loc[row.name, ("TR@1", "here")] and table.loc[row.name, ("TR@1", "paper")] == "84.0"
    assert table.loc["6 of 6 layers fused", ("TR@1", "here")] == ""
    measured = notebook.column_table("fusion", loaded, "tr1", "params_m")
    assert measured.loc[row.name, "tr1"].endswith("±0.00") and measured.loc["6 of 6 layers fused", "params_m"] == ""


def test_rerun_writes_to_its_own_file_and_names_failures(tmp_path, monkeypatch, capsys):
    done = []

    def ablate(grids, workers, results):
        done.append((grids[0].name, results))
        return {"1 of 6 layers fused, seed 0": "out of memory"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "ablate", ablate)
    notebook.records("fusion", rerun=True)
    assert done == [("fusion", results.RERUN_RESULTS)] and results.RERUN_RESULTS != ablation.RESULTS
    assert "1 of 6 layers fused, seed 0 failed: out of memory\n" in capsys.readouterr().out


def test_chart_reports_missing_records():
    def draw(number):
        if number:
            return number
        raise UserError("no run has it; run it first")

    assert notebook.chart(draw, 3) == 3
    assert notebook.chart(draw, 0).data == "*Nothing to show yet: no run has it; run it first.*"


def test_findings_are_titles_of_charts():
    fig = term_curves({"step": [1, 2], "itc": [3.0, 2.0], "total": [3.0, 2.0]})
    missing = notebook.chart(lambda: fig)
    assert notebook.findings(missing).data == f"- {fig.layout.title.text}."
    assert "missing" in notebook.findings(object()).data


def test_verdicts_of_given_numbers():
    text = notebook.verdicts([], 2, 6).data
    assert text.count("**cannot be told**") == 2 and "**2. A large fusion" in text and "dlip ablate init" in text


def test_shipped_records_have_every_role():
    assert {"teacher", "undistilled", "distilled"} <= {record["role"] for record in notebook.shipped_records()}


def test_user_error_is_one_sentence(capsys):
    assert kernel._show_error(None, UserError, UserError("there is no layer 9"), None) == ["there is no layer 9"]
    assert capsys.readouterr().err == "dlip: there is no layer 9\n"


# --- controls ---------------------------------------------------------------------------------------------------------


def test_controls_redraw(displayed):
    drawn = []

    def draw(**values):
        drawn.append(values)
        return term_curves({"step": [1], "itc": [1.0], "total": [1.0]})

    choice = notebook.interact(draw, size=["small", "large"], word=[("2. red", 1), ("1. a", 0)], hr=1.0, kd=0.0)
    first = {"size": "small", "word": 1, "hr": 1.0, "kd": 0.0}
    assert drawn == [first] and choice.values() == first and choice.weights == "hr=1"
    assert displayed[1]["text/plain"].startswith("After 1 step the")
    assert displayed[1][PLOTLY_MIME]["data"][0]["type"] == "scatter"
    choice.boxes["kd"].value = 0.5
    choice.boxes["word"].value = 0
    assert drawn[-1] == {"size": "small", "word": 0, "hr": 1.0, "kd": 0.5} and len(displayed) == 4
    assert choice["word"] == 0 and weights(choice.weights) == weights("hr=1,kd=0.5")


def test_recipe_is_a_command_line():
    said = notebook.recipe("scenes-student", vlp=1.0, hr=0.0, kd=0.0).data
    assert said == "0.62M parameters, 4 loss terms: `--size scenes-student --weights vlp=1`"


def test_anatomy_adds_up():
    rows = notebook.anatomy("base", "base")
    assert rows.loc["in all", "student"] == pytest.approx(rows["student"].iloc[:-1].sum(), abs=0.5)
    tiny = notebook.anatomy("tiny", "base")
    assert tiny.loc["image", "student"] < rows.loc["image", "student"]
    assert tiny.loc["text_ffn", "student"] == rows.loc["text_ffn", "student"]


# --- live -------------------------------------------------------------------------------------------------------------


def test_chart_follows_the_log(tmp_path, displayed, monkeypatch):
    monkeypatch.setattr(live, "REDRAW_S", 0.02)
    run = Run(tmp_path)
    run._logged = time.perf_counter()
    with live.watch(tmp_path, 20):
        run.log({"step": 10, "losses": {"itc": 4.0, "total": 4.0}})
        while len(displayed) < 3:
            time.sleep(0.01)
        run.log({"step": 20, "losses": {"itc": 3.0, "total": 3.0}})
    titles = [data["text/plain"] for data in displayed]
    assert any("10 of 20" in title for title in titles) and "20 of 20" not in titles[0]
    assert "20 of 20" in titles[-1]


def test_live_student_leaves_no_files(tmp_path, displayed, monkeypatch, capsys):
    monkeypatch.setenv("DLIP_QUICK", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    size, asked = "scenes-student:image_layers=1,text_layers=1", "itc,hr.image"
    made = notebook.learn(size, asked, steps=300, batch_size=4, init_from=["scenes/teacher"])
    assert made.losses["step"] == [1, 2] and set(made.losses) == {"step", "itc", "hr.image", "total"}
    assert made.model.med.config.image_layers == 1 and not made.model.med.training
    assert not list(tmp_path.glob("dlip-*"))
    said = capsys.readouterr().out
    assert said.startswith("2 steps in ")
    experiment = parse(shlex.split(said.splitlines()[-1])[1:])[1].experiment
    assert experiment == live.live_experiment(size, asked, 2, batch_size=4, init_from=["scenes/teacher"])
    assert (experiment.teacher, experiment.train.weights) == ("scenes/teacher", weights(asked))
    assert experiment.train.precision == "auto"
    assert displayed[-1]["text/plain"].startswith("After 2 of 2 steps")


def test_interrupted_student_is_kept(displayed, monkeypatch, capsys):
    forward, calls = Learner.forward, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(Learner, "forward", stop)
    made = notebook.learn("scenes-student", "itc", steps=2, batch_size=4)
    before = new_student("scenes-student", VLM.load("scenes/teacher"), 0).med
    assert not torch.equal(made.model.med.vision_proj.weight, before.vision_proj.weight)
    assert made.model.caption([Scenes("test", size=1)[0].image]) and not made.model.med.training
    said = capsys.readouterr().out
    assert "Interrupted" in said and "\n1 step in " in said and made.losses["step"] == [1]


# --- words and looks --------------------------------------------------------------------------------------------------


def test_texts_are_compared_with_references(tiny, scenes):
    items = [scenes[i] for i in range(2)]
    html = notebook.compare_texts([("big", "teacher", tiny), ("small", "distilled", tiny)], items, questions=True).data
    assert html.count("<tr>") == 3 and html.count("<img") == 2 and "<mark>" not in html
    assert items[1].questions[1].text in html and "■</span> small" in html
    assert notebook.gallery(items).data.count("<img") == 2


def test_score_table_has_a_row_per_model(tiny, scenes):
    rows = notebook.score_table([("one", "teacher", tiny)], scenes)
    assert list(rows.columns) == ["IR@1", "VQA", "TR@1"] and rows.loc["one"].between(0, 100).all()


@pytest.mark.parametrize(("lacks", "measured", "asked"), [("questions", ["IR@1", "TR@1"], 1), ("captions", ["VQA"], 4)])
def test_items_may_lack_questions_or_captions(lacks, measured, asked, tiny, scenes):
    models = [("one", "teacher", tiny)]
    own = ListDataset(dataclasses.replace(scenes[i], **{lacks: []}) for i in range(3))
    assert list(notebook.score_table(models, own).dropna(axis=1).columns) == measured
    assert notebook.compare_texts(models, [*own, scenes[3]], questions=True).data.count("<img") == asked
    assert ("None of" in notebook.compare_texts(models, own, questions=True).data) == (lacks == "questions")
    assert notebook.compare_texts(models, own).data.count("<img") == notebook.gallery(own).data.count("<img") == 3


def test_attention_explorer(tiny, scenes):
    explorer = notebook.AttentionExplorer({"teacher": tiny, "distilled": tiny}, scenes, index=1)
    first = explorer.words[0][1]
    assert first in explorer.objects and explorer.layers == [("last", -1)]
    assert [value for _, value in explorer.heads] == [None, 0, 1, 2, 3]
    fig = explorer.attention(first, -1, 2)
    assert "differ by 0.00 of 1 bit" in fig.layout.title.text
    actual = [np.asarray(trace.z) for trace in fig.data if trace.type == "heatmap"]
    wanted = explorer.maps["teacher"].patches(first, -1, 2).numpy()
    assert len(actual) == 2 and np.allclose(actual[0], wanted / wanted.mean(), atol=1e-4)
    for method in notebook.ATTRIBUTION_METHODS:
        fig = explorer.attributions(first, method)
        assert any(trace.type == "heatmap" for trace in fig.data)
        assert fig.layout.coloraxis.colorbar.title.text == "effect on the score, times the mean"


# --- executing --------------------------------------------------------------------------------------------------------


def executed():
    fig = term_curves({"step": [1], "itc": [1.0], "total": [1.0]})
    data = {PLOTLY_MIME: json.loads(fig.to_json()), "text/plain": "it"}
    widget = {execute.WIDGET_MIME: {"model_id": "x"}, "text/plain": "HBox()"}
    outputs = [new_output("display_data", some) for some in (widget, data)]
    cells = [new_code_cell("1", outputs=outputs), new_code_cell("2", metadata={"tags": ["live"]})]
    for cell, begin, end in zip(cells, ("00:00", "01:00"), ("02.5", "07"), strict=True):
        at = f"2026-01-01T00:{begin[:2]}:"
        cell.metadata["execution"] = {"iopub.execute_input": f"{at}00.0Z", "shell.execute_reply": f"{at}{end}Z"}
    return new_notebook(cells=cells, metadata={"widgets": {}})


def test_seconds_are_those_of_the_cells():
    assert execute.seconds(executed()) == 9.5 and execute.seconds(executed(), before_live=True) == 2.5


def test_tidy_removes_widgets_and_times():
    book = executed()
    execute.tidy(book)
    assert [output["data"] for output in book.cells[0].outputs][0] == {"text/plain": execute.CONTROLS_TEXT}
    assert "execution" not in book.cells[0].metadata and "widgets" not in book.metadata


def test_every_chart_gets_an_image(monkeypatch):
    def write(figures, files, width, height, scale):
        for figure, file in zip(figures, files, strict=True):
            file.write_bytes(figure.layout.title.text.encode())

    book = executed()
    monkeypatch.setattr("plotly.io.write_images", write)
    assert execute.add_images(book) == 0
    assert base64.b64decode(book.cells[0].outputs[1]["data"]["image/png"]).startswith(b"After 1 step the")
    assert execute.add_images(book) == 0  # which it has by now


def test_charts_without_a_browser(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    book = executed()
    monkeypatch.setattr("plotly.io.write_images", fail)
    assert execute.add_images(book) == 1 and PLOTLY_MIME in book.cells[0].outputs[1]["data"]


def test_a_teacher_in_int8_is_no_student(tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    lines = [
        make_record("it") | {"ablation": {"hash": ablation.identity(row, FULL)}, "wall_s": 1800.0}
        for row in (ablation.grid("sizes").rows[0], INT8_TEACHER)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    notebook.records("sizes", path=path)
    assert capsys.readouterr().out == "sizes: 1 run of 1 of 8 students, 0.5 hours of training\n"
