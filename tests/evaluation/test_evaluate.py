"""`dlip.evaluate`: the shape of its figures, and its way with data that lack something."""

import copy
import json
from dataclasses import replace

import pytest
import torch

import dlip
from dlip.common.errors import UserError
from dlip.data.batch import Example, Question
from dlip.data.scenes.dataset import Scenes
from dlip.vlm import VLM
from tests.checkpoints.dual_helpers import FAMILIES, dual_folder
from tests.helpers import ListDataset, reference_rank


def test_metrics_and_items_of_an_untrained_model(tiny, scenes):
    tiny.med.train()
    figures = dlip.evaluate(tiny, scenes, return_items=True, progress=False)
    assert tiny.med.training and not torch.is_inference_mode_enabled()
    assert {k: figures[k] for k in ("model", "data", "split")} == {"model": "tiny", "data": "scenes", "split": "test"}
    assert {"tr@1", "tr@5", "tr@10", "ir@1", "ir@5", "ir@10", "itc_tr@1", "itc_ir@10"} <= set(figures["retrieval"])
    assert {"bleu4", "meteor", "rougeL", "cider", "spice", "facts", "facts_f1"} == set(figures["captioning"])
    assert {"accuracy", "mean_by_type", "by_type"} == set(figures["vqa"])
    assert figures["captioning"]["meteor"] is None and "Java" in figures["notes"]["captioning.meteor"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    items = figures["items"]
    assert {name: len(rows) for name, rows in items.items()} == {"tr": 8, "ir": 40, "captioning": 8, "vqa": 48}
    hits = [row["rank"] < 5 for row in items["tr"]]
    assert figures["retrieval"]["tr@5"] == pytest.approx(100 * sum(hits) / len(hits))
    assert figures["vqa"]["accuracy"] == pytest.approx(100 * sum(row["accuracy"] for row in items["vqa"]) / 48)


def test_unavailable_task_is_none_with_a_note(tiny, scenes):
    captions = ListDataset(Example(item.image, item.image_id, item.captions) for item in scenes)
    figures = dlip.evaluate(tiny, captions, progress=False)
    assert figures["vqa"] is None and "no questions" in figures["notes"]["vqa"]
    assert figures["retrieval"]["tr@10"] is not None and "facts" not in figures["captioning"]
    questions = ListDataset(Example(item.image, item.image_id, [], [Question("red?", ["yes"])]) for item in scenes)
    figures = dlip.evaluate(tiny, questions, progress=False)
    assert figures["retrieval"] is None and figures["captioning"] is None and "accuracy" in figures["vqa"]


def test_images_without_texts_change_no_score(tiny, scenes):
    silent = [replace(item, image_id=-i, captions=[], questions=[]) for i, item in enumerate(scenes, 1)]
    mixed = ListDataset(item for pair in zip(silent, scenes, strict=True) for item in pair)
    expected, actual = (
        dlip.evaluate(tiny, data, return_items=True, progress=False, batch_size=3)
        for data in (ListDataset(scenes), mixed)
    )
    assert actual == expected


def test_texts_of_the_first_images_only(tiny, scenes):
    """Retrieval is among all images, captions and answers are those of an evaluation of the first images alone."""
    whole = dlip.evaluate(tiny, scenes, generate_limit=3, return_items=True, progress=False)
    first = dlip.evaluate(tiny, Scenes("test", size=3), return_items=True, progress=False)
    assert {name: len(rows) for name, rows in whole["items"].items()} == {"tr": 8, "ir": 40, "captioning": 3, "vqa": 18}
    assert whole["captioning"] == first["captioning"] and whole["vqa"] == first["vqa"]
    assert whole["retrieval"] == dlip.evaluate(tiny, scenes, tasks=("retrieval",), progress=False)["retrieval"]
    assert "first 3 images" in whole["notes"]["captioning"] and "first 3 images" in whole["notes"]["vqa"]
    questions_last = ListDataset(
        Example(item.image, item.image_id, item.captions, item.questions if i >= 5 else [])
        for i, item in enumerate(scenes)
    )
    figures = dlip.evaluate(tiny, questions_last, tasks=("vqa",), generate_limit=2, return_items=True, progress=False)
    assert {row["image_id"] for row in figures["items"]["vqa"]} == {scenes[i].image_id for i in (5, 6)}
    all_of_them = dlip.evaluate(tiny, scenes, tasks=("vqa",), generate_limit=9, progress=False)
    assert "vqa" not in all_of_them["notes"]


def test_a_model_by_name(tiny, scenes, tmp_path):
    tiny.save(tmp_path)
    options = dict(tasks=("retrieval", "retrieval"), progress=False)
    result = dlip.evaluate(str(tmp_path), scenes, **options)
    assert result["retrieval"] == dlip.evaluate(tiny, scenes, **options)["retrieval"]


def test_diverged_model_scores_no_hits(tiny, scenes):
    broken = VLM(copy.deepcopy(tiny.med), tiny.tokenizer, "broken")
    broken.med.text_proj.weight.data.fill_(float("nan"))
    figures = dlip.evaluate(broken, scenes, tasks=("retrieval",), k=4, progress=False)["retrieval"]
    assert figures["tr@1"] == figures["ir@1"] == figures["itc_tr@1"] == figures["itc_ir@1"] == 0


def test_invalid_arguments_are_refused(tiny, scenes):
    with pytest.raises(UserError, match="atlantis"):
        dlip.evaluate(tiny, "atlantis")
    with pytest.raises(UserError, match="ocr"):
        dlip.evaluate(tiny, scenes, tasks=("ocr",))
    for options in (dict(k=-1), dict(generate_limit=0), dict(num_beams=0), dict(max_new_tokens=0), dict(batch_size=0)):
        ((name, value),) = options.items()
        with pytest.raises(UserError, match=f"{name} is {value}; give"):
            dlip.evaluate(tiny, scenes, **options)
    with pytest.raises(UserError, match="list of tasks"):
        dlip.evaluate(tiny, scenes, tasks="vqa")
    with pytest.raises(UserError, match="mine test"):
        dlip.evaluate(tiny, ListDataset(Example(item.image, item.image_id) for item in scenes), progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_dual_encoders_retrieve_and_note_missing_abilities(family, scenes, tmp_path):
    """Texts of unequal length are ranked by the cosines of `similarity`."""
    vlm = dlip.load(dual_folder(tmp_path / family, family, "wide"))
    texts = ["a red star", "a", "the large blue circle above a green cat", "small cat"]
    data = ListDataset(Example(scenes[i].image, i, [text], scenes[i].questions) for i, text in enumerate(texts))
    figures = dlip.evaluate(vlm, data, return_items=True, progress=False)
    similarity = vlm.similarity([item.image for item in data], texts)
    expected = [reference_rank(row.tolist(), [i == j for j in range(4)]) for i, row in enumerate(similarity)]
    assert [row["rank"] for row in figures["items"]["tr"]] == expected
    assert figures["captioning"] is None and "cannot write captions" in figures["notes"]["captioning"]
    assert figures["vqa"] is None and "cannot answer questions" in figures["notes"]["vqa"]
    assert "not trained with ITM" in figures["notes"]["retrieval.tr@1"]
