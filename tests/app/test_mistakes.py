"""Mistakes of visitors: any image is read, each error is one sentence, no earlier result stays."""

import importlib
import json
import os
import re

import gradio as gr
import numpy as np
import pytest
from PIL import Image

import app
import dlip
from app import events, models
from app.page import build, serve
from app.tabs import attention, compare, disagreements, search
from app.view import parts
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import MAX_PIXELS
from tests.helpers import png_claiming

TEACHER, STUDENT, OTHER = "scenes/teacher", "scenes/student", "scenes/student-undistilled"
BOTH = {"teacher": TEACHER, "student": STUDENT}
QUESTION = "what color is the circle?"


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "tall", "wide", "dot", "turned"]
)
def test_any_image_is_read(mode, tmp_path):
    scene = Image.fromarray(Scenes("test")[0].image)
    sizes = {"tall": (3, 2000), "wide": (5000, 2), "dot": (1, 1)}
    image = scene.resize(sizes[mode]) if mode in sizes else scene
    if mode in ("F", "I", "I;16"):
        image = scene.convert("L")
        image = Image.fromarray(np.asarray(image).astype({"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]))
    elif mode not in (*sizes, "turned"):
        image = scene.convert("RGB").convert(mode)
    path = tmp_path / "picture.tiff"
    exif = Image.Exif()
    exif[0x0112] = 6 if mode == "turned" else 1
    image.save(path, exif=exif)
    result = compare.captions(str(path), TEACHER, STUDENT, method="greedy")
    assert [result["student"]["text"]] == dlip.load(STUDENT).caption([path], 1, 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"GIF89a no picture"), "cannot be read as an image"),
        (lambda path: path.write_text("hello"), "cannot be read as an image"),
        (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        (lambda path: path.write_bytes(png_claiming(60000, 60000)), "above the limit of 80,000,000"),
        (lambda path: Image.new("1", (20000, MAX_PIXELS // 20000 + 1)).save(path, "PNG"), "limit of 80,000,000"),
    ],
)
def test_unreadable_files_are_refused_without_their_path(make, message, tmp_path):
    path = tmp_path / "secret-folder"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        compare.captions(str(path), TEACHER, STUDENT)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_expired_image_is_reported(tmp_path):
    gone = str(tmp_path / "gone.png")
    with pytest.raises(UserError, match="this image has expired after an hour; upload it"):
        compare.captions(gone, TEACHER, STUDENT)
    shown = events.handled(compare._shown(compare.captions, compare.show_captions, quiet=True), str)
    assert shown(gone, TEACHER, STUDENT).startswith("This image has expired")


def test_invalid_texts_and_models_are_refused(image_path):
    with pytest.raises(UserError, match="no image yet"):
        compare.captions(None, TEACHER, STUDENT)
    with pytest.raises(UserError, match="question is empty"):
        compare.answers(image_path, TEACHER, STUDENT, " \n ")
    with pytest.raises(UserError, match="2,000 characters"):
        compare.answers(image_path, TEACHER, STUDENT, "x" * 2000)
    with pytest.raises(UserError, match="0 captions cannot be ranked"):
        compare.rankings(image_path, TEACHER, STUDENT, "\n \n")
    with pytest.raises(UserError, match="21 captions cannot be ranked"):
        compare.rankings(image_path, TEACHER, STUDENT, "a\n" * 21)
    with pytest.raises(UserError, match="there is no model 'scenes/none'"):
        compare.captions(image_path, TEACHER, "scenes/none")
    with pytest.raises(UserError, match="a model is missing"):
        compare.captions(image_path, "", STUDENT)
    long = " ".join(["circle"] * 140)
    assert compare.answers(image_path, TEACHER, STUDENT, long)["teacher"]["answers"]


def test_only_fixed_models_can_be_chosen(fix_models, image_path):
    fix_models([OTHER, STUDENT])
    assert models.choices() == [OTHER, STUDENT] and models.defaults() == (OTHER, STUDENT)
    with pytest.raises(UserError, match="'scenes/teacher' is not available here; choose one of scenes/student-"):
        compare.captions(image_path, TEACHER, STUDENT)
    fix_models(None)
    assert models.defaults() == models.PAIRS["photos"] and TEACHER in models.choices()


@pytest.mark.parametrize("names", [[OTHER, STUDENT], [STUDENT], [TEACHER, STUDENT, OTHER]])
def test_the_page_opens_on_any_list_of_models(names, fix_models):
    fix_models(names)
    shown = {part["props"].get("elem_id"): part["props"] for part in build().get_config_file()["components"]}
    assert (shown["teacher"]["value"], shown["student"]["value"]) == (names[0], names[min(1, len(names) - 1)])
    assert "info" not in shown["teacher"]  # nothing else can be typed


def test_options_reach_the_page(monkeypatch):
    served = []
    monkeypatch.setattr("app.page.serve", lambda *arguments: served.append(arguments))
    options = ["--port", "8000", "--share", "--models", f"{OTHER}, {STUDENT} ", "--gallery", "x", "--optimize"]
    assert main(["app"]) == main(["app", *options]) == 0
    assert served == [(None, False, None, None, False), (8000, True, [OTHER, STUDENT], "x", True)]


def test_exceptions_become_one_sentence():
    def fails(error):
        raise error

    with pytest.raises(gr.Error, match=r"^'The caption &lt;b&gt; is empty.'$"):
        events.guarded(fails)(UserError("the caption <b>\n is empty"))
    with pytest.raises(gr.Error, match="reason is in the program's log"):
        events.guarded(fails)(ZeroDivisionError("/secret/path"))


def test_an_event_that_fails_clears_the_earlier_result(caplog):
    def fails(error):
        raise error

    messages = []
    follows = events.handled(fails, messages.append)
    assert follows(UserError("there is no <b>")) is None and messages == ["There is no &lt;b&gt;."]
    assert follows(ZeroDivisionError("/secret/path")) is None and "the program's log" in messages[1]
    assert caplog.text.count("Traceback") == 1 and events.handled(lambda: 3, events.ignore)() == 3
    with pytest.warns(UserWarning, match="^No[.]$"):
        assert events.handled(fails, events.warn)(UserError("no")) == ""


def following(page: gr.Blocks, trigger: str) -> list:
    """The page's events that follow a change of a component, in their order."""
    (start,) = [part._id for part in page.blocks.values() if getattr(part, "elem_id", None) == trigger]
    result = [fn for fn in page.fns.values() if (start, "change") in fn.targets]
    for fn in result:
        result += [other for other in page.fns.values() if other.trigger_after == fn._id
                  and not other.trigger_only_on_failure]  # fmt: skip
    return result


def test_a_model_that_cannot_be_loaded_is_reported_once_and_clears_all_results(image_path, monkeypatch):
    messages, shown = [], {}
    monkeypatch.setattr(gr, "Warning", lambda error, **_: messages.append(error))
    page = build()
    values = {part._id: getattr(part, "value", None) for part in page.blocks.values()}
    for part in page.blocks.values():
        if getattr(part, "elem_id", None) in ("image", "teacher", "student") or isinstance(part, gr.Checkbox):
            values[part._id] = {"image": image_path, "teacher": TEACHER, "student": "scenes/none"}.get(
                part.elem_id, True
            )
    for fn in following(page, "student"):
        if not fn.outputs:  # which stops or cancels work
            continue
        if fn.fn:
            result = fn.fn(*(values[part._id] for part in fn.inputs))
        else:  # the page does it by itself: `events.set_in_page`
            result = json.loads(re.fullmatch(r"\(\) => \((.*)\)", fn.js)[1])
        for part, value in zip(fn.outputs, result if len(fn.outputs) > 1 else [result], strict=True):
            if not isinstance(value, dict):  # skip
                values[part._id] = value
            if isinstance(part, gr.HTML):
                shown[part.elem_id] = value
    assert len(messages) == 1 and messages[0].startswith("There is no model 'scenes/none'; ")
    assert shown.keys() == {
        "domain-hint", "captions", "answers", "rankings", "found", "words", "attention-maps", "measured", "worst",
        "student-color",
    }  # fmt: skip
    assert "--distilled" in shown.pop("student-color")  # until more is known of it
    assert [shown.pop(place) for place in ("words", "captions")] == [f'<p class="hint">{messages[0]}</p>'] * 2
    assert {shown.pop("found"), shown.pop("worst")} == {search.introduction(), parts.hint(disagreements.EMPTY)}
    assert set(shown.values()) == {""}


def test_a_new_image_clears_all_results():
    page = build()
    assert {part.elem_id for fn in following(page, "image") for part in fn.outputs} >= {"found", "captions", "words"}
    ids = [part.elem_id for part in page.blocks.values() if getattr(part, "elem_id", None)]
    assert len(set(ids)) == len(ids)


@pytest.mark.usefixtures("fix_models")
@pytest.mark.parametrize("word", ["port", "models", "gallery"])
def test_invalid_options_are_one_line_and_exit_2(word, app_address, capsys, monkeypatch):
    port = app_address.rstrip("/").rpartition(":")[2]
    value, message = {
        "port": (port, f"cannot listen on port {port}"),
        "models": ("scenes/none,scenes/student", "there is no model 'scenes/none'"),
        "gallery": ("nowhere", "there is no folder nowhere; check its name"),
    }[word]
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    assert main(["app", f"--{word}", value]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("dlip: ") and error.count("\n") == 1


def test_long_names_and_invalid_layers_are_refused(image_path):
    with pytest.raises(UserError, match="a model's name has 3,000 characters; give at most 1,000"):
        models.load("x" * 3000)
    with pytest.raises(UserError, match="there is no model 'xxx"):
        models.load("x" * 900)  # no file can have the name
    for layer in ("²", "9" * 5000):
        with pytest.raises(UserError, match=f"there is no layer '{layer[:30]}.*; choose last, mean or a number from 0"):
            attention.self_attention(image_path, "scenes/teacher", "scenes/student", teacher_layer=layer)


def test_gradio_settings_that_open_the_app_are_ignored(monkeypatch):
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_DEBUG"):
        monkeypatch.setenv(name, "1")
        importlib.reload(app)
        assert name not in os.environ


def test_the_app_does_not_use_a_proxy_for_its_own_page(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setattr(gr.Blocks, "launch", lambda *_, **__: (_ for _ in ()).throw(ValueError("not accessible")))
    with pytest.raises(UserError, match="the app cannot reach its own page .not accessible.; check the proxy"):
        serve()
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
