"""The app's functions against dlip called directly."""

import json
import re
from collections import OrderedDict

import gradio as gr
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dlip
from app import images, models
from app.page import build
from app.tabs import compare, search
from app.view import parts
from dlip.common.errors import MissingAbility
from dlip.data.scenes.dataset import Scenes
from dlip.export import optimize
from dlip.models.generate import Decoder
from tests.helpers import reuse_graphs

TEACHER, STUDENT, OTHER = "scenes/teacher", "scenes/student", "scenes/student-undistilled"
BOTH = {"teacher": TEACHER, "student": STUDENT}
PHOTO_TEACHER = "photos/teacher"
QUESTION = "what color is the circle?"


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        ({}, dict(num_beams=3, max_new_tokens=30)),
        (dict(beams=5, length=4), dict(num_beams=5, max_new_tokens=4)),
        (dict(method="greedy", beams=1), dict(num_beams=1, max_new_tokens=30)),
        (dict(method="nucleus", top_p=0.7, seed=3), dict(num_beams=1, max_new_tokens=30, top_p=0.7)),
    ],
)
def test_captions_equal_those_of_dlip(image_path, options, direct):
    result = compare.captions(image_path, TEACHER, OTHER, **options)
    for side, name in (("teacher", TEACHER), ("student", OTHER)):
        vlm = dlip.load(name)
        torch.manual_seed(options.get("seed", 0))
        assert [result[side]["text"]] == vlm.caption([image_path], **direct)
    drawn, short = options.get("method") == "nucleus", options.get("length") == 4  # whose captions may be equal
    assert drawn or short or result["teacher"]["text"] != result["student"]["text"]


def test_costs_and_their_summary(image_path):
    result = compare.captions(image_path, TEACHER, STUDENT)
    teacher, student = result["teacher"]["cost"], result["student"]["cost"]
    assert round(teacher["params_m"], 2) == 3.07 and round(student["params_m"], 2) == 0.63
    assert 4 < teacher["flops_g"] / student["flops_g"] < 6
    costs = [dict(ms=ms, tokens_per_s=None, params_m=p, flops_g=f) for ms, p, f in ((30, 4, 8), (20, 2, 0.8))]
    for models_costs, *stated in (
        (costs, "1.5 times as fast as", "50.0% of its parameters", "10.0% of its FLOPs"),
        (costs[::-1], "1.5 times slower than", "200.0% of its parameters", "1000.0% of its FLOPs"),
        ((costs[0], costs[0] | {"ms": 30.4}), "as fast as", "100.0% of its parameters", "100.0% of its FLOPs"),
    ):
        sentence = parts.savings(*models_costs)
        assert all(part in sentence for part in stated), sentence


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (compare.captions, dict()), (compare.captions, dict(method="greedy", length=5)),
        (compare.answers, dict(question="how many objects are there?")),
        (compare.rankings, dict(candidates="a circle\na large yellow circle\n" + "a red circle " * 20)),
    ],
)  # fmt: skip
def test_tokens_and_flops_are_counted(function, options, image_path, monkeypatch):
    for name in (TEACHER, STUDENT, OTHER):
        models.load(name)
    decode, steps = Decoder.__call__, []
    monkeypatch.setattr(Decoder, "__call__", lambda *given: steps.append(1) or decode(*given))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function(image_path, TEACHER, STUDENT, **options)
    costs = [result[side]["cost"] for side in parts.CARDS]
    assert sum(cost["flops_g"] for cost in costs) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-9)
    written = [(cost["tokens_per_s"] or 0) * cost["ms"] / 1000 for cost in costs]
    assert sum(written) == pytest.approx(len(steps))
    if options.get("length"):
        assert written == pytest.approx([5, 5, 5])  # cut, without an end


@pytest.mark.parametrize("backend", ["dlip, packed", "onnxruntime"])
def test_optimized_models_give_the_same_results(backend, image_path, tmp_path, monkeypatch, request, fix_models):
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
        graphs = request.getfixturevalue("exported_student")
        monkeypatch.setattr("dlip.export.onnx_export.trace", reuse_graphs(graphs))
    fix_models([STUDENT])  # no undistilled student beside it
    texts, both = "a small red circle\na photo", dict(teacher=STUDENT, student=STUDENT)
    captions, rankings = compare.captions(image_path, **both), compare.rankings(image_path, **both, candidates=texts)
    monkeypatch.chdir(tmp_path)  # where converted models are kept
    monkeypatch.setattr(optimize, "BACKENDS", (backend,))
    monkeypatch.setattr(optimize, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(optimize, "MAX_ROUNDS", 1)  # of one candidate, whose time decides nothing
    monkeypatch.setattr(models, "_loaded", OrderedDict())
    monkeypatch.setattr(models, "_optimizes", True)
    fast_captions = compare.captions(image_path, **both)
    fast_rankings = compare.rankings(image_path, **both, candidates=texts)
    assert models.fastest(models.load(STUDENT)).name == f"{STUDENT} by {backend} in fp32"
    for side in parts.SIDES:
        before, after = captions[side], fast_captions[side]
        assert after["text"] == before["text"]
        for key in ("flops_g", "params_m"):
            assert after["cost"][key] == before["cost"][key] and after["cost"][key]
        steps = [one["cost"]["tokens_per_s"] * one["cost"]["ms"] for one in (before, after)]
        assert steps[0] == pytest.approx(steps[1])
        before, after = rankings[side], fast_rankings[side]
        assert after["cost"]["tokens_per_s"] is None
        for one, other in zip(before["ranked"], after["ranked"], strict=True):
            assert (other["text"], other["itm"]) == (one["text"], pytest.approx(one["itm"], abs=1e-4))
            assert other["itc"] == pytest.approx(one["itc"], abs=1e-4)
    assert compare.captions(image_path, **both, method="nucleus")["teacher"]["text"]


def test_answers_equal_those_of_dlip(image_path):
    result = compare.answers(image_path, TEACHER, STUDENT, f"  {QUESTION} ")
    for side, name in BOTH.items():
        (direct,) = dlip.load(name).top_answers([image_path], [QUESTION])
        assert result[side]["answers"] == direct
    assert result["teacher"]["answers"][0][0] == "blue" and result["teacher"]["answers"][0][1] > 0.9


@pytest.mark.parametrize(("best", "shown"), [(0.98, ["a", "b"]), (0.0008, ["a"])])
def test_every_card_has_its_best_answer_and_alternatives_above_a_tenth_percent(best, shown):
    one = {"answers": [("a", best), ("b", 0.01 * best), ("c", 0.0001)], "note": "", "cost": None}
    page = compare.show_answers({"teacher": one, "student": one, "summary": ""}, (TEACHER, STUDENT))
    assert [page.count(f">{answer}<") for answer in "abc"] == [2 * (answer in shown) for answer in "abc"]


def test_rankings_equal_those_of_dlip(image_path):
    item = Scenes("test")[0]
    texts = [Scenes("test")[5].captions[0], item.captions[0], "a red circle"]
    result = compare.rankings(image_path, TEACHER, STUDENT, "\n".join(["", texts[0], "  ", *texts[1:]]))
    for side, name in BOTH.items():
        vlm = dlip.load(name)
        itm, itc = vlm.match([image_path] * 3, texts), vlm.similarity([image_path], texts)[0]
        order = itm.argsort(descending=True).tolist()
        ranked = result[side]["ranked"]
        assert [row["text"] for row in ranked] == [texts[i] for i in order]
        assert [row["itm"] for row in ranked] == pytest.approx(itm[order].tolist(), abs=1e-5)
        assert [row["itc"] for row in ranked] == pytest.approx(itc[order].tolist(), abs=1e-5)
    assert result["teacher"]["ranked"][0]["text"] == texts[1]


def test_search_ranks_itc_candidates_by_the_joint_sum(image_path):
    sentence = Scenes("test")[5].captions[0]
    shown = [Scenes("test")[i] for i in range(200)]  # the scenes models do not search the photographs
    pictures, captions = [item.image for item in shown], [item.captions[0] for item in shown]
    result, reverse = search.search(TEACHER, STUDENT, sentence), search.sentences(image_path, TEACHER, STUDENT)
    for side, name in BOTH.items():
        vlm = dlip.load(name)
        itc = vlm.similarity(pictures, [sentence])[:, 0]
        best = itc.argsort(descending=True)[:16]
        itm = vlm.match([pictures[i] for i in best], [sentence] * 16)
        joint = itc[best] / vlm.med.temp + (itm / (1 - itm)).log()
        places = [best[i].item() for i in joint.argsort(descending=True)[:5]]
        assert [hit["place"] for hit in result[side]["hits"]] == places
        for hit in result[side]["hits"]:
            assert hit["itc"] == pytest.approx(itc[hit["place"]].item(), abs=1e-5)
            assert best[hit["itc_rank"] - 1] == hit["place"]
        itc = vlm.similarity([image_path], captions)[0]
        best = itc.argsort(descending=True)[:16]
        itm = vlm.match([image_path] * 16, [captions[i] for i in best])
        joint = itc[best] / vlm.med.temp + (itm / (1 - itm)).log()
        assert reverse[side]["hits"][0]["place"] == best[joint.argmax()].item()
    assert result["teacher"]["hits"][0]["place"] == 5


def test_a_missing_ability_leaves_the_other_models_result(image_path, monkeypatch):
    pair = models.pair(TEACHER, STUDENT)

    def unable(*_):
        raise MissingAbility("this model cannot answer questions; name another")

    monkeypatch.setattr(pair["student"], "top_answers", unable)
    result = compare.answers(image_path, TEACHER, STUDENT, QUESTION)
    assert result["teacher"]["answers"][0][0] == "blue" and result["student"]["answers"] == []
    assert "cannot answer questions" in compare.show_answers(result, (TEACHER, STUDENT)) and result["summary"] == ""
    monkeypatch.setattr(pair["student"].med, "abilities", frozenset({"vqa"}))
    result = search.search(TEACHER, STUDENT, "a red circle")
    shown = search.show(result, (TEACHER, STUDENT))
    assert len(result["teacher"]["hits"]) == 5 and "cannot compare images" in shown and 'class="summary"' not in shown


def test_truncated_texts_are_noted(image_path):
    long = "is the large circle red " * 12  # 60 words, of which 40 tokens are read, with the first and the last
    note = "the model reads the first 38 of 60 words"
    answered = compare.answers(image_path, TEACHER, STUDENT, long)
    ranked = compare.rankings(image_path, TEACHER, STUDENT, f"a circle\n{long}")
    result = search.search(TEACHER, STUDENT, long)
    for one, noun in ((answered, "the question"), (ranked, "a long caption"), (result, "the sentence")):
        assert [one[side]["note"] for side in BOTH] == [f"Of {noun} {note}."] * 2
    names = (TEACHER, STUDENT)
    for shown in (compare.show_answers(answered, names), compare.show_rankings(ranked, names)):
        assert shown.count(note) == 3 and shown.count("<footer>") == 3
    shown = search.show(result, names)
    assert shown.count(note) == 2 and shown.count("<li") == 10


def test_unknown_words_are_noted(image_path):
    """All of them would otherwise be the same text, answered with confidence."""
    asked = "сколько собак is it ?"
    answered = compare.answers(image_path, TEACHER, STUDENT, asked)
    ranked = compare.rankings(image_path, TEACHER, STUDENT, "собака\n狗")
    found = search.search(TEACHER, STUDENT, "собака 狗")
    notes = "сколько, собак", "собака", "собака, 狗"
    for results, words in zip((answered, ranked, found), notes, strict=True):
        assert [results[side]["note"] for side in BOTH] == [f"The model does not know {words}."] * 2


def test_differing_words_are_marked_and_texts_escaped(image_path):
    result = compare.captions(image_path, TEACHER, OTHER)
    result["teacher"]["text"], result["student"]["text"] = "a red <b>circle", "a blue <b>circle"
    html = compare.show_captions(result, (TEACHER, "<i>"))
    assert re.findall("<mark>(.*?)</mark>", html) == ["blue"]  # the student's, as the sentence below them says
    assert "<b>circle" not in html and "&lt;b&gt;circle" in html and "<i>" not in html
    result["student"]["text"] = "a red <b>circle"
    assert "<mark>" not in compare.show_captions(result, (TEACHER, OTHER))


def test_the_undistilled_student_is_shown_beside_a_shipped_one(image_path, fix_models):
    names = {"teacher": TEACHER, "student": STUDENT, "undistilled": OTHER}
    for function, show, options in (
        (compare.captions, compare.show_captions, {}),
        (compare.answers, compare.show_answers, {"question": QUESTION}),
        (compare.rankings, compare.show_rankings, {"candidates": "a circle\na star"}),
    ):
        result = function(image_path, TEACHER, STUDENT, **options)
        assert result.keys() == {*names, "summary"}
        shown = show(result, (TEACHER, STUDENT))
        assert re.findall('<article class="card (.*?)" aria-label=".*? ([^ ]*)"', shown) == [
            ("teacher", TEACHER), ("distilled", STUDENT), ("undistilled", OTHER),
        ]  # fmt: skip
    captions = compare.captions(image_path, TEACHER, STUDENT)
    assert [captions["undistilled"]["text"]] == dlip.load(OTHER).caption([image_path], 3, 30)
    for student in (OTHER, TEACHER):  # which have none
        assert "undistilled" not in (result := compare.captions(image_path, TEACHER, student))
        assert compare.show_captions(result, (TEACHER, student)).count("<article") == 2
    fix_models([TEACHER, STUDENT])
    assert "undistilled" not in compare.captions(image_path, TEACHER, STUDENT)


def test_the_color_of_a_student_is_that_of_its_role(tmp_path, fix_models):
    assert models.role(TEACHER, "teacher") == "teacher" and models.role(STUDENT, "student") == "distilled"
    assert models.role(OTHER, "student") == "undistilled" and models.role("scenes/none", "student") == "distilled"
    assert models.role(f"{OTHER}@96", "student") == "undistilled"  # at another image size
    assert models.role(TEACHER, "student") == "distilled"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "record.json").write_text(json.dumps({"role": "</style><img src=x onerror=alert(1)>"}))
    assert models.role(str(tmp_path), "student") == "distilled"
    (tmp_path / "record.json").write_text(json.dumps({"role": "undistilled"}))
    assert models.role(str(tmp_path), "student") == "undistilled"  # trained again
    fix_models([TEACHER, OTHER])  # no file of another model is read
    assert models.role(str(tmp_path), "student") == "distilled" and models.role(OTHER, "student") == "undistilled"
    fix_models(None)
    assert models.role(str(tmp_path), "student") == "undistilled"
    assert models.role("x" * 3000, "student") == "distilled"


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> gr.Blocks:
    return build()


def test_the_page_opens_with_models_that_know_its_first_image(monkeypatch, fix_models):
    assert models.defaults() == (PHOTO_TEACHER, "photos/student")
    fix_models([TEACHER, STUDENT])
    assert images.examples()[0].name.startswith("Scene")
    fix_models(None)
    monkeypatch.setattr(models, "built_in_models", lambda data="scenes": [TEACHER, STUDENT] * (data == "scenes"))
    assert models.defaults() == (TEACHER, STUDENT) and images.examples()[0].name.startswith("Scene")


@pytest.mark.parametrize(
    ("kind", "chosen", "expected"),
    [
        ("scenes", (PHOTO_TEACHER, "photos/student"), (TEACHER, STUDENT)),
        ("photos", (TEACHER, STUDENT), (PHOTO_TEACHER, "photos/student")),
        ("scenes", (TEACHER, OTHER), (TEACHER, OTHER)),
        ("scenes", (PHOTO_TEACHER, STUDENT), (PHOTO_TEACHER, STUDENT)),
        ("photos", ("runs/own", STUDENT), ("runs/own", STUDENT)),
    ],
)
def test_an_example_switches_two_shipped_models_that_do_not_know_it(kind, chosen, expected, page):
    (choose,) = [fn for fn in page.fns.values() if getattr(fn.fn, "__name__", "") == "choose_example"]
    assert [part.elem_id for part in choose.outputs][:3] == ["image", "teacher", "student"]
    place = next(i for i, example in enumerate(images.examples()) if images.kind(example.image) == kind)
    image, teacher, student, question, captions, sentence = choose.fn(place, *chosen)
    assert images.kind(image) == kind and (teacher, student) == expected
    assert question == images.examples()[place].question and captions.count("\n") == 3
    assert sentence == images.examples()[place].captions[0]


def test_hints_on_images_that_a_model_does_not_know():
    scene, photograph = Image.fromarray(Scenes("test")[0].image), images.photographs()[0].image
    own = ("runs/big", "runs/own")
    assert compare.HINTS["photos"] in compare.out_of_domain_hint(photograph, (TEACHER, "runs/own"))
    assert compare.HINTS["scenes"] in compare.out_of_domain_hint(scene, (PHOTO_TEACHER, STUDENT))
    assert compare.FEW_PHOTOGRAPHS in compare.out_of_domain_hint(photograph, (PHOTO_TEACHER, "runs/own"))
    assert compare.out_of_domain_hint(scene, (TEACHER, STUDENT)) == compare.out_of_domain_hint(photograph, own) == ""
    assert {images.kind(example.image.resize((64, 64))) for example in images.photographs()} == {"photos"}
