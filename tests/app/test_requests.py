"""Requests as they come over the wire that cannot be answered: each gets a sentence, and the log no traceback."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from app.security import NO_ENDPOINT
from tests.helpers import running_app

TEACHER, STUDENT = "scenes/teacher", "scenes/student"
FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> tuple[str, Path]:
    """Where an app with a list of models listens, and its log."""
    log = tmp_path_factory.mktemp("app") / "log"
    with running_app("--models", f"{TEACHER},{STUDENT}", stderr=log) as (address, _):
        yield address, log


def ask(address: str, route: str, body: dict | None = None, **headers: str) -> tuple[int, str]:
    """The status and the text of what is answered; the body goes as JSON."""
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + route, sent, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


API = "gradio_api/"


@pytest.mark.parametrize(
    ("route", "body", "status", "reason"),
    [
        ("call/nothing", {"data": []}, 404, NO_ENDPOINT),
        ("call/v2/nothing", {}, 404, NO_ENDPOINT),
        ("queue/join", {"data": [], "fn_index": 9999, "session_hash": "mine"}, 404, NO_ENDPOINT),
        ("queue/data?session_hash=nobody", None, 200, '"session_not_found":true'),
        ("call/search/nobody", None, 200, "event: error"),
    ],
)
def test_wrong_requests_get_a_reason(route, body, status, reason, app):
    address, log = app
    assert (answer := ask(address, API + route, body))[0] == status and reason in answer[1]
    assert log.read_text().count("\n") <= 2 and "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([TEACHER], "Got 1 value instead of 4"),
        (["picture.png", TEACHER, STUDENT, "what?"], "A value has the wrong type"),
        ([5, TEACHER, STUDENT, "what?"], "A value has the wrong type"),
        ([{"path": "/etc/passwd", **FILE}, TEACHER, STUDENT, "what?"], "A value has the wrong type"),
    ],
)
def test_unreadable_values_get_a_reason(values, reason, app):
    address, log = app
    status, answer = ask(address, f"{API}call/answers", {"data": values})
    answer = ask(address, f"{API}call/answers/{json.loads(answer)['event_id']}")[1]
    assert status == 200 and reason in answer and "gradio_api/info" in answer
    assert "Traceback" not in log.read_text()


def test_lone_surrogates_are_question_marks(app, image_path):
    """A page's own request: its answer holds the caption again, as UTF-8."""
    address, log = app
    config = json.loads(ask(address, "config")[1])
    (rank,) = [one["id"] for one in config["dependencies"] if one["api_name"] == "rankings"]
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n%s\r\n--b--\r\n'
    sent = urllib.request.Request(f"{address}{API}upload", form % Path(image_path).read_bytes(),
                                  {"Content-Type": "multipart/form-data; boundary=b"})  # fmt: skip
    (path,) = json.load(urllib.request.urlopen(sent))
    values = [{"path": path, **FILE}, TEACHER, STUDENT, "a red \ud83d star"]
    ask(address, f"{API}queue/join", {"data": values, "fn_index": rank, "session_hash": "mine"})
    answer = ask(address, f"{API}queue/data?session_hash=mine")[1]
    assert '"success":true' in answer and "a red ? star" in answer and "Traceback" not in log.read_text()


def test_only_local_host_names_are_answered_while_any_model_can_be_named(app_address, app):
    port = app_address.rstrip("/").rpartition(":")[2]
    for name in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert ask(app_address, "config", Host=f"{name}:{port}")[0] == 200
    for name in ("rebound.example", "localhost.example", "10.0.0.1", "[", ""):
        assert ask(app_address, "config", Host=f"{name}:{port}")[0] == 400
    assert ask(app[0], "config", Host="rebound.example")[0] == 200
