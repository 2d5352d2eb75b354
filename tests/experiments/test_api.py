"""`dlip.train` and `dlip.distill`: keywords of the configuration in, a run out."""

import pytest
import torch

import dlip
from dlip.common.errors import UserError
from dlip.data import Example
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.training.weights import weights

AT, HR, VLP = weights("at"), weights("hr"), weights("vlp")

SIZE = "scenes-student:image_layers=1,text_layers=1"
SHORT = {"steps": 2, "batch_size": 4, "warmup": 1, "log_every": 1}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for split in ("train-small", "test"):
        monkeypatch.setitem(SPLITS, split, 12)


def test_top_level():
    assert sorted(dlip.__all__) == ["VLM", "distill", "evaluate", "load", "read_records", "train"]
    assert all(callable(getattr(dlip, name)) for name in dlip.__all__)


def test_a_run_has_student_log_plot_metrics_and_folder(tmp_path):
    teacher = dlip.load("scenes/teacher")
    run = dlip.distill(teacher, SIZE, limit=8, weights={"itc": 1, "hr": 5}, folder=tmp_path / "run", **SHORT)
    assert run.log["step"].tolist() == [1, 2] and {"itc", *HR, "total", "lr"} <= {*run.log}
    assert len(run.plot().data) >= 2
    metrics = run.evaluate(tasks=["retrieval"], progress=False)
    assert (metrics["split"], metrics["model"]) == ("test", str(tmp_path / "run"))
    loaded = dlip.load(tmp_path / "run")
    image, text = [Scenes("test")[0].image], ["a red circle"]
    torch.testing.assert_close(loaded.similarity(image, text), run.student.similarity(image, text))


@pytest.mark.parametrize("teacher", [None, "scenes/teacher"])
def test_a_list_of_examples_and_default_weights(teacher, tmp_path):
    examples = [Example(item.image, captions=item.captions, questions=item.questions) for item in Scenes("val", 8)]
    run = (
        dlip.distill(teacher, SIZE, examples, folder=tmp_path, **SHORT)
        if teacher
        else dlip.train(SIZE, examples, folder=tmp_path, **SHORT)
    )
    expected = {*VLP, *HR, *AT} if teacher else {*VLP}
    assert expected == {*run.log} - {"step", "epoch", "lr", "norm", "images_per_s", "seconds", "total"}
    with pytest.raises(UserError, match="data"):
        run.evaluate()


def test_an_unknown_option_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="'stepz'; steps"):
        dlip.train(SIZE, folder=tmp_path, stepz=3)


def test_push_uploads_the_student(tmp_path, monkeypatch):
    run = dlip.train(SIZE, limit=4, tokenizer="scenes/teacher", weights="lm", folder=tmp_path, **SHORT)
    pushed = []

    def push(folders, repo):
        pushed.extend(folders.values())
        return [f"{repo}-{name}" for name in folders]

    monkeypatch.setattr("dlip.export.transformers.push", push)
    assert run.push_to_hub("me/tiny") == "me/tiny-fp32" and (pushed[0] / "model.safetensors").is_file()
