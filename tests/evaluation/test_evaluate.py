"""`dlip.evaluate`: the shape of its figures, and its way with data that lack something."""

import copy
import json

import pytest
import torch

import dlip
from dlip.common.errors import UserError
from dlip.data.batch import Item, Question
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import EVALUATORS, captioning
from dlip.evaluation.tasks.base import TaskResult
from dlip.vlm import VLM


class Data(list):
    name, split = "mine", "val"


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    monkeypatch.setattr(
        captioning, "find_java", lambda: None
    )  # a second a call, and tests/evaluation/tasks/test_captioning.py has it


def test_metrics_of_an_untrained_model(tiny, scenes):
    tiny.med.train()
    figures = dlip.evaluate(tiny, scenes, answers=["yes", "no"], progress=False)
    assert tiny.med.training and not torch.is_inference_mode_enabled()
    assert {k: figures[k] for k in ("model", "data", "split")} == {"model": "tiny", "data": "scenes", "split": "test"}
    assert {"tr@1", "tr@5", "tr@10", "ir@1", "ir@5", "ir@10", "itc_tr@1", "itc_ir@10"} <= set(figures["retrieval"])
    assert {"bleu4", "meteor", "rougeL", "cider", "spice", "facts", "facts_f1"} == set(figures["captioning"])
    assert {"accuracy", "mean_by_type", "by_type", "ranked"} == set(figures["vqa"])
    assert figures["captioning"]["meteor"] is None and "Java" in figures["notes"]["captioning.meteor"]
    assert all(0 <= v <= 100 for v in figures["retrieval"].values())
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert "items" not in figures


def test_items_agree_with_metrics(tiny, scenes):
    figures = dlip.evaluate(tiny, scenes, return_items=True, progress=False)
    items = figures["items"]
    assert {name: len(rows) for name, rows in items.items()} == {"tr": 8, "ir": 40, "captioning": 8, "vqa": 48}
    hits = [row["rank"] < 5 for row in items["tr"]]
    assert figures["retrieval"]["tr@5"] == pytest.approx(100 * sum(hits) / len(hits))
    assert figures["vqa"]["accuracy"] == pytest.approx(100 * sum(row["accuracy"] for row in items["vqa"]) / 48)


def test_unavailable_task_is_none_with_a_note(tiny, scenes):
    captions = Data(Item(item.image, item.image_id, item.captions) for item in scenes)
    figures = dlip.evaluate(tiny, captions, progress=False)
    assert figures["vqa"] is None and "no questions" in figures["notes"]["vqa"]
    assert figures["retrieval"]["tr@10"] is not None and "facts" not in figures["captioning"]
    questions = Data(Item(item.image, item.image_id, [], [Question("red?", ["yes"])]) for item in scenes)
    figures = dlip.evaluate(tiny, questions, progress=False)
    assert figures["retrieval"] is None and figures["captioning"] is None and "accuracy" in figures["vqa"]


def test_texts_of_the_first_images_only(tiny, scenes):
    """Retrieval is among all images, captions and answers are those of an evaluation of the first images alone."""
    whole = dlip.evaluate(tiny, scenes, generate_limit=3, return_items=True, progress=False)
    first = dlip.evaluate(tiny, Scenes("test", size=3), return_items=True, progress=False)
    assert {name: len(rows) for name, rows in whole["items"].items()} == {"tr": 8, "ir": 40, "captioning": 3, "vqa": 18}
    assert whole["captioning"] == first["captioning"] and whole["vqa"] == first["vqa"]
    assert whole["retrieval"] == dlip.evaluate(tiny, scenes, tasks=("retrieval",), progress=False)["retrieval"]
    assert "first 3 images" in whole["notes"]["captioning"] and "first 3 images" in whole["notes"]["vqa"]
    all_of_them = dlip.evaluate(tiny, scenes, tasks=("vqa",), generate_limit=9, progress=False)
    assert "vqa" not in all_of_them["notes"]


def test_one_task_alone(tiny, scenes):
    figures = dlip.evaluate(tiny, scenes, tasks=("retrieval",), progress=False)
    assert "retrieval" in figures and "captioning" not in figures and "vqa" not in figures


def test_a_model_by_name(tiny, scenes, tmp_path):
    tiny.save(tmp_path)
    options = dict(tasks=("retrieval",), progress=False)
    result = dlip.evaluate(str(tmp_path), scenes, **options)
    assert result["retrieval"] == dlip.evaluate(tiny, scenes, **options)["retrieval"]


def test_repeated_task_is_evaluated_once(tiny, scenes, monkeypatch):
    done = []
    monkeypatch.setitem(EVALUATORS, "vqa", lambda *_, **__: done.append("vqa") or TaskResult({"accuracy": 1.0}, {}))
    dlip.evaluate(tiny, scenes, tasks=("vqa", "vqa"), progress=False)
    assert done == ["vqa"]


def test_diverged_model_scores_no_hits(tiny, scenes):
    broken = VLM(copy.deepcopy(tiny.med), tiny.tokenizer, "broken")
    broken.med.text_proj.weight.data.fill_(float("nan"))
    figures = dlip.evaluate(broken, scenes, tasks=("retrieval",), k=4, progress=False)["retrieval"]
    assert figures["tr@1"] == figures["ir@1"] == figures["itc_tr@1"] == figures["itc_ir@1"] == 0


def test_invalid_arguments_are_refused(tiny, scenes):
    with pytest.raises(UserError, match="atlantis"):
        dlip.evaluate(tiny, "atlantis")
    with pytest.raises(UserError, match="no task 'ocr'; choose one of retrieval, captioning, vqa"):
        dlip.evaluate(tiny, scenes, tasks=("ocr",))
    with pytest.raises(
        UserError, match="on mine val: the data have no captions; the data have no questions with answers$"
    ):
        dlip.evaluate(tiny, Data(Item(item.image, item.image_id) for item in scenes), progress=False)


def test_progress_bar_is_on_standard_error_or_off(tiny, scenes, capsys):
    dlip.evaluate(tiny, scenes, tasks=("vqa",), progress=False)
    assert capsys.readouterr() == ("", "")
    dlip.evaluate(tiny, scenes, tasks=("vqa",))
    out, err = capsys.readouterr()
    assert not out and "vqa" in err
