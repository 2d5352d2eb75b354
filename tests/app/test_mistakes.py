"""Mistakes of visitors: any image is read, each error is one sentence, no earlier result stays."""

import importlib
import os
import threading

import numpy as np
import pytest
from PIL import Image

import app
import dlip
from app import endpoints, images, models
from app.page import build
from app.tabs import attention, compare
from app.view import parts
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import MAX_PIXELS
from tests.helpers import png_claiming

TEACHER, STUDENT, OTHER = "scenes/teacher", "scenes/student", "scenes/student-undistilled"
BOTH = {"teacher": TEACHER, "student": STUDENT}


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


def test_gradio_settings_that_open_the_app_are_ignored(monkeypatch):
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_DEBUG"):
        monkeypatch.setenv(name, "1")
        importlib.reload(app)
        assert name not in os.environ


@pytest.mark.parametrize(
    ("function", "change", "named"),
    [
        (compare.captions, dict(image=None), "no image yet"),
        (compare.captions, dict(image="gone.png"), "expired"),
        (compare.captions, dict(beams=9), "beams is 9"),
        (compare.captions, dict(beams=None), "beams is None"),
        (compare.captions, dict(method="magic"), "method is 'magic'"),
        (compare.captions, dict(top_p=2), "top p is 2"),
        (compare.captions, dict(length=1000), "length is 1000"),
        (compare.captions, dict(seed=-1), "seed is -1"),
        (compare.captions, dict(student="scenes/none"), "scenes/none"),
        (compare.captions, dict(teacher=""), "a model is missing"),
        (compare.answers, dict(question=" \0\n"), "question is "),
        (compare.answers, dict(question="x" * 1001), "question is 'x"),
        (compare.answers, dict(question=["what?"]), "question is .'what.'."),
        (compare.rankings, dict(candidates="\n \n"), "0 captions"),
        (compare.rankings, dict(candidates="a\n" * 21), "21 captions"),
        (attention.words, dict(question=5), "question is 5"),
        (attention.self_attention, dict(teacher_layer="9" * 5000), "teacher layer is '999"),
        (attention.self_attention, dict(student_head="all"), "student head is 'all'"),
    ],
)
def test_a_wrong_argument_is_named(function, change, named, image_path):
    required = {compare.answers: dict(question="what?"), compare.rankings: dict(candidates="a")}.get(function, {})
    with pytest.raises(UserError, match=named.replace("what.", "what.*")):
        function(**{"image": image_path, **BOTH, **required, **change})


def test_an_answer_to_a_mistake_replaces_an_earlier_result():
    def fails():
        raise UserError("there is no <b>")

    assert endpoints.answered(fails)() == parts.hint("There is no &lt;b&gt;.")


def test_texts_are_one_line_without_control_characters():
    assert endpoints.one_line("  a\n \0 b\x7f ") == "a b" and endpoints.one_line(None) == ""
    assert endpoints.one_line("a \ud83d b") == "a ? b" and endpoints.one_line(5) == 5


def test_only_uploaded_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    inside = f"{tmp_path}/a/x.png"
    assert images.uploaded(None) is images.uploaded({"path": None}) is None
    assert images.uploaded({"path": inside}) == images.uploaded(inside) == inside
    for path in ("/etc/passwd", f"{tmp_path}/../x.png", "x.png", 5, "http://127.0.0.1/x.png"):
        for file in (path, {"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}):
            with pytest.raises(UserError, match="not uploaded here"):
                images.uploaded(file)


def test_other_requests_run_between_the_steps_of_a_job(monkeypatch):
    began, got_in = threading.Event(), threading.Event()

    def other():
        began.wait(5)
        with models.turn:
            got_in.set()

    visitor = threading.Thread(target=other)
    visitor.start()
    with models.in_turns(lambda share: began.set() or got_in.wait(5)) as step:
        assert not got_in.is_set()
        step(0.5)
        assert got_in.is_set()
    visitor.join(5)
    monkeypatch.setattr(models, "LIMIT_S", -1)
    with pytest.raises(UserError, match="-1 seconds"), models.in_turns() as step:
        step(0.5)
    assert models.turn.acquire(blocking=False)
    models.turn.release()
