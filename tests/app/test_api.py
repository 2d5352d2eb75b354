"""The app's endpoints against its functions: the same answers, documented, apart from each other, and closed."""

import json
import re
import threading
import urllib.error
import urllib.request

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.tabs import attention, attributions, compare, disagreements, search, tradeoffs
from dlip.data.scenes.dataset import Scenes
from tests.helpers import ROOT

TEACHER, STUDENT, OTHER = "scenes/teacher", "scenes/student", "scenes/student-undistilled"
BOTH = {"teacher": TEACHER, "student": STUDENT}
QUESTION = "what color is the circle?"


@pytest.fixture(scope="module")
def client(app_address) -> Client:
    return Client(app_address, verbose=False)


def untimed(result):
    """Without what differs from call to call."""
    if isinstance(result, dict):
        return {k: untimed(v) for k, v in result.items() if k not in ("ms", "tokens_per_s", "summary")}
    return [untimed(v) for v in result] if isinstance(result, list | tuple) else result


def test_endpoints_equal_their_functions(client, image_path):
    captions, question = "a red circle\na large dotted yellow circle", QUESTION
    calls = {
        compare.captions: dict(image=image_path, **BOTH, method="beam", beams=3, top_p=0.9, length=30, seed=0),
        compare.answers: dict(image=image_path, **BOTH, question=question),
        compare.rankings: dict(image=image_path, **BOTH, candidates=captions),
        search.search: dict(**BOTH, sentence="a red star on a dark background"),
        search.sentences: dict(image=image_path, **BOTH),
    }
    for function, arguments in calls.items():
        direct = json.loads(json.dumps(untimed(function(**arguments))))
        sent = arguments | ({"image": handle_file(image_path)} if "image" in arguments else {})
        result = untimed(client.predict(**sent, api_name=f"/{function.__name__}"))
        assert approximately(result, direct), function.__name__


def approximately(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(approximately(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(approximately, a, b))
    return a == pytest.approx(b, abs=1e-4) if isinstance(a, float) else a == b


def test_endpoints_are_documented(client):
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    page = (ROOT / "docs" / "api.md").read_text()
    assert len(described) == 13 and all(f"`{name}`" in page or f'"{name}"' in page for name in described)
    for name, endpoint in described.items():
        assert endpoint["description"], name
        assert all(p["type"] and p["parameter_name"] for p in endpoint["parameters"]), name
        assert endpoint["returns"][0]["type"].get("properties") or endpoint["returns"][0]["type"].get("items"), name
    assert "https://" not in str(described)  # an example is nobody's address
    names = [p["parameter_name"] for p in described["/captions"]["parameters"]]
    assert names == ["image", "teacher", "student", "method", "beams", "top_p", "length", "seed"]
    assert described["/captions"]["returns"][0]["type"]["properties"]["teacher"]["properties"]["text"]


def test_api_errors_are_one_sentence(client, image_path, tmp_path):
    (tmp_path / "wrong.png").write_text("no picture")
    image = handle_file(image_path)
    for sent, named in (
        (dict(image=handle_file(str(tmp_path / "wrong.png"))), "cannot be read as an image"),
        (dict(image="/etc/hostname"), "not uploaded here"),
        (dict(image=None), "no image yet"),
        (dict(image=image, question=" "), "Question is"),
        (dict(image=image, teacher="scenes/none"), "'scenes/none'"),
        (dict(image=image, question=["what?"]), "Question is"),
    ):
        with pytest.raises(Exception, match=named) as caught:
            client.predict(**{**BOTH, "question": "what?", **sent}, api_name="/answers")
        assert re.match(r"^[A-Z][^\n]*[.]?$", str(caught.value)) and "Traceback" not in str(caught.value)


def test_concurrent_requests_do_not_mix(app_address, tmp_path):
    expected, result = {}, {}
    for i, student in enumerate((STUDENT, OTHER, STUDENT, OTHER)):
        path = str(tmp_path / f"{i}.png")
        Image.fromarray(Scenes("test")[i].image).save(path)
        expected[path, student] = [compare.captions(path, TEACHER, student)[side]["text"] for side in BOTH]

    def visit(path, student):
        own = Client(app_address, verbose=False)
        for _ in range(3):
            answer = own.predict(handle_file(path), TEACHER, student, "beam", 3, 0.9, 30, 0, api_name="/captions")
            result.setdefault((path, student), []).append([answer[side]["text"] for side in BOTH])

    visitors = [threading.Thread(target=visit, args=key) for key in expected]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert result == {key: [texts] * 3 for key, texts in expected.items()}
    assert len({tuple(texts) for texts in expected.values()}) == 4


def test_no_other_file_is_served(app_address, image_path):
    root = ROOT
    paths = ["/etc/passwd", image_path, root / "README.md", root / "app" / "page.py", "README.md", "../README.md"]
    for path in map(str, paths):
        for address in (f"/gradio_api/file={path}", f"/file={path}", f"/static/../{path}", f"/{path}"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(app_address.rstrip("/") + urllib.request.quote(address, safe="/=")).read()
            assert refused.value.code in (403, 404), address
    for mark in ({"meta": {"_type": "gradio.FileData"}}, {"meta": {}}, {}):
        stolen = {"path": image_path, **mark}  # an image, but not an uploaded one
        body = json.dumps({"data": [stolen, TEACHER, STUDENT, QUESTION]}).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{app_address}gradio_api/call/answers", body, kind)
        event = json.load(urllib.request.urlopen(request))["event_id"]
        with urllib.request.urlopen(f"{app_address}gradio_api/call/answers/{event}") as stream:
            answer = stream.read().decode()
        assert "event: error" in answer and "yellow" not in answer


def test_the_other_endpoints_equal_their_functions(client, image_path):
    image, text, places = handle_file(image_path), "a large yellow circle", ("last", "mean", "last", "mean")
    names, group = (TEACHER, STUDENT), "scenes test, 1,000 images"
    for function, arguments in (
        (attention.words, (*names, "what is this?")),
        (attention.attention, (*names, text, 3, "fusion", "", *places)),
        (attention.self_attention, (*names, True, *places)),
        (attributions.attribution, (*names, text, 3, "Grad-CAM")),
    ):
        result = client.predict(image, *arguments, api_name=f"/{function.__name__}")
        direct = json.loads(json.dumps(untimed(function(image_path, *arguments))))
        assert approximately(untimed(result), direct), function.__name__
    for function, arguments in (
        (tradeoffs.tradeoffs, (group, "flops_g", "cider")),
        (tradeoffs.run, ("student", group)),
        (disagreements.disagreements, (*names, "answers", 10)),
    ):
        result = client.predict(*arguments, api_name=f"/{function.__name__}")
        assert approximately(result, json.loads(json.dumps(function(*arguments)))), function.__name__
    result = client.predict(*names, "retrieval", 1, 1, 5, 2, [2], False, api_name="/speed")
    assert result["batches"] == [2] and result["latency"]["models"]["student"]["repeats"] == 2


def test_requests_by_other_host_names_are_refused(app_address):
    """While any model can be named."""
    for host, status in (("localhost", 200), ("rebound.example", 400)):
        request = urllib.request.Request(f"{app_address}config", headers={"Host": host})
        try:
            assert urllib.request.urlopen(request).status == status
        except urllib.error.HTTPError as refused:
            assert refused.code == status
