"""The Attention tab's functions against dlip called directly."""

import html
import json
import re

import pytest
import torch
from PIL import Image

import dlip
from app import images, models
from app.tabs import attention as page
from app.tabs import attributions
from app.view import attention_view
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.render import masks
from dlip.evaluation.attention_maps import (
    answer_maps,
    image_maps,
    map_divergence,
    mask_coverage,
    mass,
    patches,
    pointing,
    word_maps,
)
from dlip.evaluation.attribution import Score, grad_cam

TEACHER, STUDENT = "scenes/teacher", "scenes/student"
NAMES = {"teacher": TEACHER, "student": STUDENT}
CAPTION = "a small blue circle with a large lime moon at right"
CIRCLE = 3  # its place among the words
QUESTION = "what color is the circle?"


def grid(side: dict) -> torch.Tensor:
    return torch.tensor(side["map"])


# --- words ------------------------------------------------------------------------------------------------------------


def test_words_are_both_models_captions_and_answers(image_path):
    result = page.words(image_path, TEACHER, STUDENT, f" {QUESTION}\n")
    image = images.read(image_path)
    captions = [dlip.load(name).caption([image])[0] for name in NAMES.values()]
    answers = [dlip.load(name).answer([image], [QUESTION])[0] for name in NAMES.values()]
    assert [text["text"] for text in result] == [*captions, QUESTION, *answers]
    assert [text["who"] for text in result] == ["teacher", "student", "you", "teacher", "student"]
    assert [text["question"] for text in result] == ["", "", "", QUESTION, QUESTION]
    assert [text["read"] for text in result] == [len(text["text"].split()) for text in result]
    assert page.words(image_path, TEACHER, STUDENT, "red " * 60)[2]["read"] == 38  # of 40 tokens, with [ENC] and [SEP]
    assert len(page.words(image_path, TEACHER, STUDENT)) == len(page.words(image_path, TEACHER, STUDENT, None)) == 2
    with pytest.raises(UserError, match="question is 'xxx"):
        page.words(image_path, TEACHER, STUDENT, "x" * 1001)


def test_a_model_that_cannot_caption_is_skipped(image_path, monkeypatch):
    monkeypatch.setattr(models.load(STUDENT).med, "abilities", frozenset({"vqa"}))
    result = page.words(image_path, TEACHER, STUDENT, QUESTION)
    assert [(text["who"], text["kind"]) for text in result] == [
        ("teacher", "caption"), ("you", "question"), ("teacher", "answer"), ("student", "answer"),
    ]  # fmt: skip


@pytest.mark.parametrize(("able", "source"), [({"vqa"}, "decoder"), ({"itc", "itm"}, "decoder"), ({"lm"}, "fusion")])
def test_a_missing_ability_leaves_the_other_models_map(able, source, image_path, monkeypatch):
    full = page.attention(image_path, TEACHER, STUDENT, CAPTION, CIRCLE, source)
    monkeypatch.setattr(models.load(STUDENT).med, "abilities", frozenset(able))
    result = page.attention(image_path, TEACHER, STUDENT, CAPTION, CIRCLE, source)
    assert result["teacher"] == full["teacher"] and result["divergence"] is None
    assert result["student"]["map"] == [] and result["student"]["note"].startswith("This model cannot ")
    shown = attention_view.show(result, images.read(image_path))
    assert shown.count("<img") == 1 and result["student"]["note"] in html.unescape(shown) and "bit" not in shown
    assert "write captions" in result["student"]["note"] or source == "fusion"
    neither = {**result, "teacher": {**result["teacher"], "map": [], "note": "No."}}
    both = attention_view.show(neither, images.read(image_path))
    assert "<img" not in both and "No." in both
    with pytest.raises(UserError, match="there is no word 40 in a text of 11; count from 0"):
        page.attention(image_path, STUDENT, STUDENT, CAPTION, 40, source)
    if source == "decoder":
        result = attributions.attribution(image_path, TEACHER, STUDENT, CAPTION, CIRCLE, "Grad-CAM")
        assert result["teacher"]["map"] and result["student"]["map"] == [] and result["student"]["note"]


def test_every_word_that_is_read_is_a_button():
    texts = [page.Line(who="teacher", kind="caption", text="a <red> star over there", question="", read=3),
             page.Line(who="student", kind="caption", text="", question="", read=0),
             page.Line(who="you", kind="question", text="what now?", question="", read=2)]  # fmt: skip
    shown = page.show(texts, {"text": 2, "word": 0})
    buttons = re.findall(r'data-index="(.+?)" aria-pressed="(\w+)">([^<]*)<', shown)
    places = [tuple(json.loads(html.unescape(index)).values()) for index, _, _ in buttons]
    assert places == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    assert [word for _, _, word in buttons] == ["a", "&lt;red&gt;", "star", "what", "now?"]
    assert [pressed for _, pressed, _ in buttons] == ["false", "false", "false", "true", "false"]
    assert shown.count('<span title="not read: the text is too long">') == 2 and ">there</span>" in shown
    assert page.first_word(texts) == {"text": 0, "word": 2}  # the first thing that is named
    assert page.first_word(texts[1:]) == {"text": 1, "word": 0} and page.first_word(texts[1:2]) is None


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["decoder", "fusion"])
def test_maps_and_scores_equal_those_of_dlip(image_path, source):
    result = page.attention(image_path, TEACHER, STUDENT, CAPTION, CIRCLE, source)
    image, scene = images.read(image_path), Scenes("test").scene(0)
    maps = [word_maps(dlip.load(name), image, CAPTION, source).map(CIRCLE) for name in NAMES.values()]
    assert result["divergence"] == pytest.approx(map_divergence(*maps).item(), abs=1e-6)
    assert result["about"] == "circle" and [scene.objects[result["object"]].shape] == ["circle"]
    covered = mask_coverage(torch.from_numpy(masks(scene)[result["object"]]), 8)
    for (side, name), over in zip(NAMES.items(), maps, strict=True):
        own = result[side]
        assert own["model"] == name
        torch.testing.assert_close(grid(own), patches(over), atol=1e-6, rtol=0)
        assert own["hit"] == pointing(patches(over), covered).item()
        assert own["share"] == pytest.approx(mass(patches(over), covered).item(), abs=1e-6)
        assert own["chance_share"] == pytest.approx(covered.mean().item())
        assert own["chance_hit"] == pytest.approx((covered > 0).sum().item() / 64)


def test_layers_and_heads_are_selected(image_path):
    result = page.attention(image_path, TEACHER, STUDENT, CAPTION, 1, "fusion", "", "mean", "2", "0", "mean")
    image = images.read(image_path)
    expected = word_maps(dlip.load(TEACHER), image, CAPTION).patches(1, None, 2)
    ours = word_maps(dlip.load(STUDENT), image, CAPTION).patches(1, 0)
    torch.testing.assert_close(grid(result["teacher"]), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(grid(result["student"]), ours, atol=1e-6, rtol=0)
    assert page.layers_and_heads(TEACHER, page.CROSS) == (["last", "mean", *"012345"], ["mean", *"0123"])
    assert page.layers_and_heads(TEACHER, page.SELF)[0] == ["last", "mean", *"01234"]  # of the image encoder


def test_maps_of_an_answers_word(image_path):
    result = page.attention(image_path, TEACHER, STUDENT, "yellow", 0, "answer", QUESTION)
    expected = answer_maps(dlip.load(TEACHER), images.read(image_path), QUESTION, "yellow").patches(0)
    torch.testing.assert_close(grid(result["teacher"]), expected, atol=1e-6, rtol=0)
    assert result["object"] is None and result["teacher"]["hit"] is None


def test_self_attention_and_rollout(image_path):
    maps = image_maps(dlip.load(STUDENT), images.read(image_path))
    one = page.self_attention(image_path, TEACHER, STUDENT, False, "last", "mean", "0", "1")
    torch.testing.assert_close(grid(one["student"]), maps.cls(0, 1), atol=1e-6, rtol=0)
    rolled = page.self_attention(image_path, TEACHER, STUDENT, True)
    torch.testing.assert_close(grid(rolled["student"]), maps.rollout(), atol=1e-6, rtol=0)
    assert 0 < rolled["divergence"] < 1
    assert "times the mean attention" in attention_view.show(rolled, images.read(image_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(word=40), "no word 40"),
        (dict(source="itm"), "source is 'itm'"),
        (dict(student_layer="4"), "no layer 4"),
        (dict(teacher_layer="-1"), "teacher layer is '-1'"),
        (dict(teacher_head="all"), "teacher head is 'all'"),
        (dict(text=" "), "there is no word 0"),
        (dict(text="x" * 1001), "text is 'xxx"),
        (dict(word=None), "word is None"),
        (dict(source="answer", question=None), "the question is empty"),
        (dict(image=None), "no image yet"),
    ],
)
def test_invalid_arguments_are_named(image_path, change, message):
    arguments = dict(image=image_path, teacher=TEACHER, student=STUDENT, text=CAPTION, word=0)
    with pytest.raises(UserError, match=message):
        page.attention(**arguments | change)


def test_any_image_of_the_gallery_is_scored(tmp_path):
    place, path = 11, tmp_path / "scene.png"
    Image.fromarray(images.SCENES[place].image).save(path)
    assert place not in images.EXAMPLE_SCENES
    kinds = [f"{o.color} {o.shape}" for o in images.SCENES.scene(place).objects]
    result = page.attention(str(path), TEACHER, STUDENT, kinds[1], 1)
    assert kinds.count(kinds[1]) == 1 and result["object"] == 1 and result["student"]["share"] > 0


def test_ambiguous_words_are_not_scored(image_path):
    scene = Scenes("test").scene(0)
    shapes = [o.shape for o in scene.objects]
    assert "star" not in shapes and shapes.count("circle") == 1
    for text, word in (("what color is the star?", 4), ("a small yellow circle", 3), ("a large red circle", 2)):
        result = page.attention(image_path, TEACHER, STUDENT, text, word, "fusion")
        assert result["object"] is None and result["teacher"]["hit"] is None and result["student"]["hit"] is None
    result = page.attention(image_path, TEACHER, STUDENT, "what color is the circle?", 4, "fusion")
    assert result["object"] == shapes.index("circle")


def test_several_largest_cells_hit_if_half_of_them_do():
    scene = Scenes("test").scene(0)
    mask = masks(scene)[0]
    over = torch.zeros(1 + mask.size)
    rows, columns = mask.nonzero()
    block = torch.zeros(mask.shape)
    block[rows.min() - 1 : rows.max() + 1, columns.min() : columns.max() + 1] = 1.0  # its first row misses
    over[1:] = block.flatten()
    result = attention_view.compare_maps("x", "occlusion", NAMES, {"teacher": over, "student": over}, scene, 0)
    assert result["teacher"]["hit"] and result["teacher"]["chance_hit"] == result["teacher"]["chance_share"]


# --- attributions -----------------------------------------------------------------------------------------------------


def test_attributions_equal_those_of_dlip(image_path):
    shares = []
    result = attributions.attribution(image_path, TEACHER, STUDENT, CAPTION, CIRCLE, "Grad-CAM", shares.append)
    expected = grad_cam(Score(dlip.load(TEACHER), CAPTION, CIRCLE), images.read(image_path))
    torch.testing.assert_close(grid(result["teacher"]), expected / expected.sum(), atol=2e-6, rtol=0)
    assert shares == [0.5, 1.0] and result["kind"] == "Grad-CAM" and result["object"] is not None
    full = attributions.attribution(image_path, TEACHER, STUDENT, CAPTION, None, "Grad-CAM")
    assert full["about"] == CAPTION and full["object"] is None
    with pytest.raises(UserError, match="method is 'LIME'"):
        attributions.attribution(image_path, TEACHER, STUDENT, CAPTION, CIRCLE, "LIME")


def test_large_maps_are_averaged():
    means = torch.rand(attention_view.MAX_CELLS, attention_view.MAX_CELLS)
    large = means.repeat_interleave(4, 0).repeat_interleave(4, 1)
    large[::2] *= 2  # half of the rows of each block
    over = torch.cat([torch.zeros(1), large.flatten()])
    result = attention_view.compare_maps("x", "occlusion", NAMES, {"teacher": over, "student": over})
    torch.testing.assert_close(torch.tensor(result["student"]["map"]), means / means.sum(), atol=2e-6, rtol=0)
