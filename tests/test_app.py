"""The app's functions and endpoints against dlip called directly, and what it does with visitors' mistakes."""

import json
import re
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from PIL import Image

import dlip
from app import compare, guard, models, pictures, search, space
from app.page import build
from dlip.cli import main
from dlip.data.scenes import Scenes
from dlip.data.transforms import MAX_PIXELS
from dlip.errors import Unable, UserError

TEACHER, STUDENT, OTHER = "scenes/teacher", "scenes/student", "scenes/student-undistilled"
BOTH = {"teacher": TEACHER, "student": STUDENT}
QUESTION = "what color is the large circle?"


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    """A scene as the file that a visitor brings."""
    path = tmp_path_factory.mktemp("app") / "scene.png"
    Image.fromarray(Scenes("test")[0].image).save(path)
    return str(path)


@pytest.fixture(scope="module")
def client(app_address) -> Client:
    return Client(app_address, verbose=False)


def untimed(found):
    """Without what differs from call to call."""
    if isinstance(found, dict):
        return {k: untimed(v) for k, v in found.items() if k not in ("ms", "tokens_per_s", "summary")}
    return [untimed(v) for v in found] if isinstance(found, list | tuple) else found


# --- the functions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        ({}, dict(num_beams=3, max_new_tokens=30)),
        (dict(beams=5, length=4), dict(num_beams=5, max_new_tokens=4)),
        (dict(method="greedy", beams=5), dict(num_beams=1, max_new_tokens=30)),
        (dict(method="nucleus", top_p=0.7, seed=3), dict(num_beams=1, max_new_tokens=30, top_p=0.7)),
    ],
)
def test_captions_are_those_of_dlip(picture, options, direct):
    found = compare.captions(picture, TEACHER, OTHER, **options)
    for side, name in (("teacher", TEACHER), ("student", OTHER)):
        vlm = dlip.load(name)
        torch.manual_seed(options.get("seed", 0))
        assert [found[side]["text"]] == vlm.caption([picture], **direct)
    assert found["teacher"]["text"] != found["student"]["text"] or options.get("length") == 4


def test_costs_are_counted_and_the_summary_divides_them(picture):
    found = compare.captions(picture, TEACHER, STUDENT)
    teacher, student = found["teacher"]["cost"], found["student"]["cost"]
    assert round(teacher["params_m"], 2) == 3.06 and round(student["params_m"], 2) == 0.62
    for cost, side in ((teacher, "teacher"), (student, "student")):
        tokens = len(dlip.load(BOTH[side]).tokenizer.encode([found[side]["text"]])[0][0]) - 1
        assert cost["tokens_per_s"] == pytest.approx(1000 * tokens / cost["ms"])
    assert 4 < teacher["flops_g"] / student["flops_g"] < 6
    costs = [dict(ms=ms, tokens_per_s=None, params_m=p, flops_g=f) for ms, p, f in ((30, 4, 8), (20, 2, 0.8))]
    said = compare.parts.saves(*costs)
    assert (
        said == "The student was 1.5 times faster this time, with 1/2.0 of the parameters and 1/10.0 of the operations."
    )
    assert "1.5 times slower this time, with 2.0 times the parameters" in compare.parts.saves(*costs[::-1])
    same = compare.parts.saves(costs[0], costs[0] | {"ms": 30.4})
    assert same == "The student was equally fast this time, with all the parameters and all the operations."


def test_answers_and_their_probabilities_are_those_of_dlip(picture):
    found = compare.answers(picture, TEACHER, STUDENT, f"  {QUESTION} ")
    for side, name in BOTH.items():
        (direct,) = dlip.load(name).answers([picture], [QUESTION])
        assert found[side]["answers"] == direct
    assert found["teacher"]["answers"][0][0] == "yellow" and found["teacher"]["answers"][0][1] > 0.9


def test_rankings_are_those_of_dlip(picture):
    item = Scenes("test")[0]
    texts = [Scenes("test")[5].captions[0], item.captions[0], "a red circle"]
    found = compare.rankings(picture, TEACHER, STUDENT, "\n".join(["", texts[0], "  ", *texts[1:]]))
    for side, name in BOTH.items():
        vlm = dlip.load(name)
        itm, itc = vlm.match([picture] * 3, texts), vlm.similarity([picture], texts)[0]
        order = itm.argsort(descending=True).tolist()
        ranked = found[side]["ranked"]
        assert [row["text"] for row in ranked] == [texts[i] for i in order]
        assert [row["itm"] for row in ranked] == pytest.approx(itm[order].tolist(), abs=1e-5)
        assert [row["itc"] for row in ranked] == pytest.approx(itc[order].tolist(), abs=1e-5)
    assert found["teacher"]["ranked"][0]["text"] == texts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(beams=None), "beams is missing; choose a number from 2 to 8"),
        (dict(seed=None), "seed is missing; choose a number from 0 to 2,147,483,648"),
        (dict(seed=-1), "seed is -1 here; choose a number from 0"),
        (dict(top_p=2), "top p is 2 here; choose a number from 0.1 to 1"),
        (dict(length=1000), "length is 1000 here"),
        (dict(method="magic"), "there is no decoding 'magic'; choose beam, greedy, nucleus"),
    ],
)
def test_settings_of_decoding_are_named(options, message, picture):
    with pytest.raises(UserError, match=message):
        compare.captions(picture, TEACHER, STUDENT, **options)


def test_search_is_itc_re_ranked_by_itm(picture):
    sentence = Scenes("test")[5].captions[0]
    gallery = [Scenes("test")[i] for i in range(200)]
    found, reverse = search.search(TEACHER, STUDENT, sentence), search.sentences(picture, TEACHER, STUDENT)
    for side, name in BOTH.items():
        vlm = dlip.load(name)
        itc = vlm.similarity([item.image for item in gallery], [sentence])[:, 0]
        best = itc.argsort(descending=True)[:16]
        itm = vlm.match([gallery[i].image for i in best], [sentence] * 16)
        places = [best[i].item() for i in itm.argsort(descending=True)[:5]]
        assert [hit["place"] for hit in found[side]["hits"]] == places
        for hit in found[side]["hits"]:
            assert hit["itc"] == pytest.approx(itc[hit["place"]].item(), abs=1e-5)
            assert best[hit["itc_rank"] - 1] == hit["place"]
        itc = vlm.similarity([picture], [item.captions[0] for item in gallery])[0]
        best = itc.argsort(descending=True)[:16]
        itm = vlm.match([picture] * 16, [gallery[i].captions[0] for i in best])
        assert reverse[side]["hits"][0]["place"] == best[itm.argmax()].item()
    assert found["teacher"]["hits"][0]["place"] == 5


def test_a_model_that_lacks_the_weights_says_so_and_the_other_answers(picture, monkeypatch):
    pair = models.pair(TEACHER, STUDENT)

    def unable(*_):
        raise Unable("this model cannot answer questions; name another")

    monkeypatch.setattr(pair["student"], "answers", unable)
    found = compare.answers(picture, TEACHER, STUDENT, QUESTION)
    assert found["teacher"]["answers"][0][0] == "yellow" and found["student"]["answers"] == []
    assert "cannot answer questions" in compare.show_answers(found, (TEACHER, STUDENT)) and found["summary"] == ""
    monkeypatch.setattr(pair["student"].med, "abilities", frozenset({"vqa"}))
    found = search.search(TEACHER, STUDENT, "a red circle")
    shown = search.show(found, (TEACHER, STUDENT), True)
    assert len(found["teacher"]["hits"]) == 5 and "cannot compare pictures" in shown and "share none" not in shown


def test_words_that_differ_are_marked_and_texts_are_escaped(picture):
    found = compare.captions(picture, TEACHER, STUDENT)
    found["teacher"]["text"], found["student"]["text"] = "a red <b>circle", "a blue <b>circle"
    html = compare.show_captions(found, (TEACHER, "<i>"))
    assert re.findall("<mark>(.*?)</mark>", html) == ["red", "blue"]
    assert "<b>circle" not in html and "&lt;b&gt;circle" in html and "<i>" not in html
    found["student"]["text"] = "a red <b>circle"
    assert "<mark>" not in compare.show_captions(found, (TEACHER, STUDENT))


def test_other_pictures_than_scenes_are_said_to_be_strange_to_the_scenes_models():
    scene, photograph = Image.fromarray(Scenes("test")[0].image), Image.new("RGB", (640, 480))
    assert "know only the drawn scenes" in compare.abroad(photograph, (TEACHER, "runs/own"))
    assert compare.abroad(scene, (TEACHER, STUDENT)) == compare.abroad(photograph, ("runs/big", "runs/own")) == ""


def test_students_wear_the_colour_of_their_training():
    assert models.role(TEACHER, "teacher") == "teacher" and models.role(STUDENT, "student") == "distilled"
    assert models.role(OTHER, "student") == "undistilled" and models.role("scenes/none", "student") == "distilled"
    assert models.role(TEACHER, "student") == "distilled"


# --- visitors' mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "tall", "wide", "dot", "turned"]
)
def test_any_picture_is_read(mode, tmp_path):
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
    found = compare.captions(str(path), TEACHER, STUDENT, method="greedy")
    assert [found["student"]["text"]] == dlip.load(STUDENT).caption([path], 1, 30)


def huge(side: int) -> bytes:
    """A PNG that says it is so many pixels wide and high."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"GIF89a no picture"), "cannot be read as a picture"),
        (lambda path: path.write_text("hello"), "cannot be read as a picture"),
        (lambda path: path.write_bytes(b""), "cannot be read as a picture"),
        (lambda path: path.write_bytes(huge(60000)), "above the limit of 80,000,000"),
        (
            lambda path: Image.new("1", (20000, MAX_PIXELS // 20000 + 1)).save(path, "PNG"),
            "above the limit of 80,000,000",
        ),
    ],
)
def test_wrong_files_are_one_sentence_without_their_place(make, message, tmp_path):
    path = tmp_path / "secret-folder"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        compare.captions(str(path), TEACHER, STUDENT)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_texts_are_bounded_and_models_named(picture):
    with pytest.raises(UserError, match="no picture yet"):
        compare.captions(None, TEACHER, STUDENT)
    with pytest.raises(UserError, match="question is empty"):
        compare.answers(picture, TEACHER, STUDENT, " \n ")
    with pytest.raises(UserError, match="2,000 characters"):
        compare.answers(picture, TEACHER, STUDENT, "x" * 2000)
    with pytest.raises(UserError, match="0 captions cannot be ranked"):
        compare.rankings(picture, TEACHER, STUDENT, "\n \n")
    with pytest.raises(UserError, match="21 captions cannot be ranked"):
        compare.rankings(picture, TEACHER, STUDENT, "a\n" * 21)
    with pytest.raises(UserError, match="there is no model 'scenes/none'"):
        compare.captions(picture, TEACHER, "scenes/none")
    with pytest.raises(UserError, match="a model is missing"):
        compare.captions(picture, "", STUDENT)
    long = " ".join(["circle"] * 140)
    assert compare.answers(picture, TEACHER, STUDENT, long)["teacher"]["answers"]


def test_only_fixed_models_can_be_chosen(picture):
    models.fix([OTHER, STUDENT])
    try:
        assert models.choices() == [OTHER, STUDENT] and models.first() == (OTHER, STUDENT)
        with pytest.raises(UserError, match="'scenes/teacher' cannot be chosen here; choose one of scenes/student-"):
            compare.captions(picture, TEACHER, STUDENT)
    finally:
        models.fix(None)
    assert models.first() == (TEACHER, STUDENT) and TEACHER in models.choices()


@pytest.mark.parametrize("names", [[OTHER, STUDENT], [STUDENT], [TEACHER, STUDENT, OTHER]])
def test_the_page_opens_on_any_list_of_models(names):
    models.fix(names)
    try:
        shown = {part["props"].get("elem_id"): part["props"] for part in build().get_config_file()["components"]}
    finally:
        models.fix(None)
    assert (shown["teacher"]["value"], shown["student"]["value"]) == (names[0], names[min(1, len(names) - 1)])


def test_models_of_the_command_line_stand_without_spaces(monkeypatch):
    served = []
    monkeypatch.setattr("app.page.serve", lambda *asked: served.append(asked))
    assert main(["app", "--models", f"{OTHER}, {STUDENT} "]) == 0
    assert served == [(None, False, [OTHER, STUDENT])]


def test_faults_become_one_sentence():
    def fails(error):
        raise error

    def fails_later(error):
        yield 1
        raise error

    with pytest.raises(gr.Error, match=r"^'The caption &lt;b&gt; is empty.'$"):
        guard.guarded(fails)(UserError("the caption <b>\n is empty"))
    with pytest.raises(gr.Error, match="reason is in the program's log"):
        guard.guarded(fails)(ZeroDivisionError("/secret/path"))
    steps = guard.guarded(fails_later)(UserError("no"))
    assert next(steps) == 1
    with pytest.raises(gr.Error, match="No."):
        next(steps)


def test_what_follows_a_choice_leaves_nothing_of_the_earlier_one(caplog):
    def fails(error):
        raise error

    told = []
    follows = guard.following(fails, told.append)
    assert follows(UserError("there is no <b>")) is None and told == ["There is no &lt;b&gt;."]
    assert follows(ZeroDivisionError("/secret/path")) is None and "the program's log" in told[1]
    assert caplog.text.count("Traceback") == 1 and guard.following(lambda: 3, guard.nothing)() == 3
    with pytest.warns(UserWarning, match="^No[.]$"):
        assert guard.following(fails, guard.toast)(UserError("no")) == ""


def following(page: gr.Blocks, trigger: str) -> list:
    """The page's events that follow a change of a component, in their order."""
    (start,) = [part._id for part in page.blocks.values() if getattr(part, "elem_id", None) == trigger]
    found = [fn for fn in page.fns.values() if (start, "change") in fn.targets]
    for fn in found:
        found += [other for other in page.fns.values() if other.trigger_after == fn._id]
    return found


def test_a_model_that_cannot_be_loaded_is_told_once_and_nothing_old_stays_under_its_name(picture, monkeypatch):
    told, shown = [], {}
    monkeypatch.setattr(gr, "Warning", lambda said, **_: told.append(said))
    page = build()
    values = {part._id: getattr(part, "value", None) for part in page.blocks.values()}
    for part in page.blocks.values():
        if getattr(part, "elem_id", None) in ("picture", "student") or isinstance(part, gr.Checkbox):
            values[part._id] = {"picture": picture, "student": "scenes/none"}.get(part.elem_id, True)
    for fn in following(page, "student"):
        found = fn.fn(*(values[part._id] for part in fn.inputs)) if fn.fn else None
        for part, value in zip(fn.outputs, found if isinstance(found, tuple) else [found], strict=True):
            if not isinstance(value, dict):  # skip
                values[part._id] = value
            if isinstance(part, gr.HTML):
                shown[part.elem_id] = value
    assert len(told) == 1 and told[0].startswith("There is no model 'scenes/none'; ")
    assert shown.keys() == {"captions", "answers", "rankings", "found", "words", "look", "measured", "worst"}
    assert shown.pop("words") == f'<p class="hint">{told[0]}</p>' and set(shown.values()) == {""}


def test_what_was_found_goes_with_the_picture_and_the_settings():
    page = build()
    assert {part.elem_id for fn in following(page, "picture") for part in fn.outputs} >= {"found", "captions", "words"}
    ids = [part.elem_id for part in page.blocks.values() if getattr(part, "elem_id", None)]
    assert len(set(ids)) == len(ids)


def test_endpoints_take_what_their_functions_take_by_default(picture):
    page = build()
    found = page.get_api_info()["named_endpoints"]
    for name in ("/words", "/attention"):
        (question,) = [part for part in found[name]["parameters"] if part["parameter_name"] == "question"]
        assert question["parameter_has_default"] and question["parameter_default"] == ""
    for fn in page.fns.values():
        if fn.api_visibility == "public":
            for part in fn.inputs:
                if not isinstance(part, gr.Image | gr.Checkbox):
                    assert part.preprocess(None) is None, (fn.api_name, part.label)


def test_examples_offer_scenes_a_drawing_and_photographs():
    names = [example.name for example in pictures.examples()]
    assert sum(name.startswith("Scene") for name in names) == len(pictures.SCENES)
    assert any(name.startswith("Drawing") for name in names) and any(name.startswith("Photograph") for name in names)
    assert all(example.question and len(set(example.captions)) == 4 for example in pictures.examples())


def test_a_space_is_a_folder_that_runs_by_itself(tmp_path):
    space.write(tmp_path / "space")
    _, card, _ = (tmp_path / "space" / "README.md").read_text().split("---\n")
    card = yaml.safe_load(card)
    assert card["sdk"] == "gradio" and card["sdk_version"] == gr.__version__
    needed = (tmp_path / "space" / "requirements.txt").read_text().split()
    assert any(line.startswith("gradio>=") for line in needed) and any(line.startswith("torch>=") for line in needed)
    code = "import app.page; print(app.page.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "space", capture_output=True, text=True)
    assert run.stdout.strip() == str(tmp_path / "space" / "app" / "page.py"), run.stderr
    compile((tmp_path / "space" / card["app_file"]).read_text(), card["app_file"], "exec")


# --- over the API -----------------------------------------------------------------------------------------------------


def test_endpoints_give_what_the_functions_give(client, picture):
    captions, question = "a red circle\na large dotted yellow circle", QUESTION
    calls = {
        compare.captions: dict(picture=picture, **BOTH, method="beam", beams=3, top_p=0.9, length=30, seed=0),
        compare.answers: dict(picture=picture, **BOTH, question=question),
        compare.rankings: dict(picture=picture, **BOTH, candidates=captions),
        search.search: dict(**BOTH, sentence="a red star on a dark background"),
        search.sentences: dict(picture=picture, **BOTH),
    }
    for function, arguments in calls.items():
        direct = json.loads(json.dumps(untimed(function(**arguments))))
        sent = arguments | ({"picture": handle_file(picture)} if "picture" in arguments else {})
        found = untimed(client.predict(**sent, api_name=f"/{function.__name__}"))
        assert approximately(found, direct), function.__name__


def approximately(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(approximately(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(approximately, a, b))
    return a == pytest.approx(b, abs=1e-4) if isinstance(a, float) else a == b


def test_the_readme_s_example_works(app_address, picture, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = re.findall(r"^```py\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(Path(picture).parent)
    Image.open(picture).save("picture.png")
    names = {}
    exec(compile(example.replace("http://127.0.0.1:7860/", app_address), "README.md", "exec"), names)
    assert names["found"]["student"]["text"] == compare.captions(picture, TEACHER, STUDENT)["student"]["text"]


def test_endpoints_are_documented(client):
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {"/captions", "/answers", "/rankings", "/search", "/sentences"} <= described.keys()
    for name, endpoint in described.items():
        assert endpoint["description"], name
        assert all(p["type"] and p["parameter_name"] for p in endpoint["parameters"]), name
        assert endpoint["returns"][0]["type"].get("properties") or endpoint["returns"][0]["type"].get("items"), name
    names = [p["parameter_name"] for p in described["/captions"]["parameters"]]
    assert names == ["picture", "teacher", "student", "method", "beams", "top_p", "length", "seed"]
    assert described["/captions"]["returns"][0]["type"]["properties"]["teacher"]["properties"]["text"]


def test_mistakes_over_the_api_are_one_sentence(client, picture, tmp_path):
    (tmp_path / "wrong.png").write_text("no picture")
    image, line = handle_file(picture), r"^[A-Z][^\n]*[.]$"
    for sent, message in (
        (
            dict(picture=handle_file(str(tmp_path / "wrong.png")), **BOTH, question="what?"),
            "cannot be read as a picture",
        ),
        (dict(picture=image, **BOTH, question=" "), "The question is empty; type one."),
        (
            dict(picture=image, teacher="scenes/none", student=STUDENT, question="what?"),
            "There is no model 'scenes/none'",
        ),
        (dict(picture=None, **BOTH, question="what?"), "There is no picture yet"),
        (
            dict(picture=image, **BOTH, beams=None, api_name="/captions"),
            "Beams is missing; choose a number from 2 to 8.",
        ),
        (dict(picture=image, **BOTH, method="magic", api_name="/captions"), "There is no decoding 'magic'"),
        (
            dict(**BOTH, task="answers", pictures=None, api_name="/disagreements"),
            "Pictures is missing; choose a number",
        ),
        (dict(picture=image, **BOTH, question="x" * 1001, api_name="/words"), "The question has 1,001 characters"),
    ):
        with pytest.raises(Exception, match=message) as caught:
            client.predict(**{"api_name": "/answers", **sent})
        assert re.match(line, str(caught.value)) and "Traceback" not in str(caught.value)


def test_two_at_once_with_different_models_do_not_meet(app_address, tmp_path):
    wanted, found = {}, {}
    for i, student in enumerate((STUDENT, OTHER, STUDENT, OTHER)):
        path = str(tmp_path / f"{i}.png")
        Image.fromarray(Scenes("test")[i].image).save(path)
        wanted[path, student] = [compare.captions(path, TEACHER, student)[side]["text"] for side in BOTH]

    def visit(path, student):
        own = Client(app_address, verbose=False)
        for _ in range(3):
            said = own.predict(handle_file(path), TEACHER, student, "beam", 3, 0.9, 30, 0, api_name="/captions")
            found.setdefault((path, student), []).append([said[side]["text"] for side in BOTH])

    visitors = [threading.Thread(target=visit, args=key) for key in wanted]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert found == {key: [texts] * 3 for key, texts in wanted.items()}
    assert len({tuple(texts) for texts in wanted.values()}) == 4


def test_nothing_else_on_the_disk_is_served(app_address, picture):
    root = Path(__file__).parent.parent
    paths = ["/etc/passwd", picture, root / "README.md", root / "app" / "page.py", "README.md", "../README.md"]
    for path in map(str, paths):
        for address in (f"/gradio_api/file={path}", f"/file={path}", f"/static/../{path}", f"/{path}"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(app_address.rstrip("/") + urllib.request.quote(address, safe="/=")).read()
            assert refused.value.code in (403, 404), address
    stolen = {"path": picture, "meta": {"_type": "gradio.FileData"}}  # a picture, but none that was brought
    body = json.dumps({"data": [stolen, TEACHER, STUDENT, QUESTION]}).encode()
    asked = urllib.request.Request(f"{app_address}gradio_api/call/answers", body, {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(asked))["event_id"]
    with urllib.request.urlopen(f"{app_address}gradio_api/call/answers/{event}") as stream:
        said = stream.read().decode()
    assert "event: error" in said and "yellow" not in said


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["port", "models"])
def test_a_mistake_on_the_command_line_is_one_line_and_exit_2(word, app_address, capsys, monkeypatch):
    port = app_address.rstrip("/").rpartition(":")[2]
    value, message = {
        "port": (port, f"cannot listen on port {port}"),
        "models": ("scenes/none,scenes/student", "there is no model 'scenes/none'"),
    }[word]
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    try:
        assert main(["app", f"--{word}", value]) == 2
    finally:
        models.fix(None)
    said = capsys.readouterr().err
    assert message in said and said.startswith("dlip: ") and said.count("\n") == 1
