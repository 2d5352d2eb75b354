"""The app as a service: how it ends, and how it loads models while others are served."""

import copy
import json
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest
from gradio_client import Client, handle_file
from gradio_client.utils import Status

import dlip
from app import endpoints, models
from app.page import serve
from dlip.checkpoints.load import built_in_models
from dlip.common.errors import UserError
from tests.helpers import running_app

TEACHER, STUDENT = "scenes/teacher", "scenes/student"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_app_and_deletes_uploads(number, code, image_path, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running_app(exit_code=code) as (address, app):
        sent = dict(image=handle_file(image_path), teacher=STUDENT, student=STUDENT, question="what is this?")
        client = Client(address, verbose=False)
        assert client.predict(**sent, api_name="/answers")["teacher"]["answers"]
        assert list(tmp_path.glob("dlip-app-*/**/*.png"))
        arguments = handle_file(image_path), TEACHER, STUDENT, "a large circle", 2, "integrated gradients"
        job = client.submit(*arguments, api_name="/attribution")
        while job.status().code != Status.PROCESSING:
            time.sleep(0.05)
        app.send_signal(number)
        assert app.wait(30) == code
    assert not list(tmp_path.glob("dlip-app-*"))


def test_a_shared_app_offers_the_shipped_models_only(fix_models, monkeypatch):
    launched = {}

    def launch(page, **options):
        launched.update(options)
        raise OSError

    monkeypatch.setattr("gradio.Blocks.launch", launch)
    for name in ("GRADIO_TEMP_DIR", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    with pytest.raises(UserError, match="cannot listen"):
        serve(share=True)
    assert set(models.choices()) == set(built_in_models()) and models.are_fixed()
    assert launched["app_kwargs"]["middleware"] == []


def test_requests_cannot_bypass_the_queue(app_address):
    body = json.dumps({"data": [TEACHER, STUDENT, "a red circle"]}).encode()
    request = urllib.request.Request(f"{app_address}gradio_api/run/search", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request)


@pytest.fixture
def slow(monkeypatch):
    """Models of which one, "slow", is loaded only when the event is set, and "none" never; how often each was asked."""
    ready, requests = threading.Event(), []

    def load(name: str):
        requests.append(name)
        if name == "slow":
            ready.wait(20)
        if name == "none":
            raise UserError("there is no model 'none'")
        return object()

    monkeypatch.setattr(dlip, "load", load)
    monkeypatch.setattr(models, "_loaded", models._loaded.__class__())
    return ready, requests


def test_loading_a_model_blocks_no_other_request(slow):
    ready, requests = slow
    results = []
    load = endpoints.answered(models.load)
    visitors = [threading.Thread(target=lambda: results.append(load("slow"))) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    other = threading.Thread(target=load, args=["quick"])
    other.start()
    other.join(10)
    assert not other.is_alive() and results == []
    ready.set()
    for visitor in visitors:
        visitor.join(10)
    assert len(set(results)) == 1 and len(results) == 3 and sorted(requests) == ["quick", "slow"]
    assert models.turn.acquire(blocking=False)
    models.turn.release()


def test_recent_models_are_kept_and_failures_are_not(slow):
    _, requests = slow
    first = models.load("0")
    for name in map(str, range(models.MAX_LOADED)):
        models.load(name)
    assert models.load("0") is first
    models.load("more")  # in the place of "1"
    models.load("0")
    assert requests == [*map(str, range(models.MAX_LOADED)), "more"]
    models.load("1")
    assert requests[-1] == "1"
    for _ in range(2):
        with pytest.raises(UserError, match="no model 'none'"):
            models.load("none")
    assert requests[-2:] == ["none", "none"]


def test_a_run_that_is_trained_again_is_loaded_again(tiny, tmp_path):
    tiny.save(folder := tmp_path / "run")
    first = models.load(str(folder))
    assert models.load(str(folder)) is first
    other = copy.deepcopy(tiny)
    other.med.temp.data += 1
    other.save(folder)
    assert models.load(str(folder)).med.temp == other.med.temp != first.med.temp
