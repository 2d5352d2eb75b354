"""Long jobs: they can be stopped, let other requests run between their steps, and end at a limit."""

import threading
from contextvars import copy_context
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext

from app import jobs, models
from app.tabs import attributions
from dlip.common.errors import UserError

NAMES = "scenes/teacher", "scenes/student"
CAPTION = "a small blue circle with a large lime moon at right"


def test_a_stopped_job_ends(image_path):
    shares, event = [], SimpleNamespace(alive=True)

    def report(share: float) -> None:
        shares.append(share)
        event.alive = share < 0.1

    def explain() -> None:
        LocalContext.blocks.set(SimpleNamespace(_queue=SimpleNamespace(event_ids_to_events={"mine": event})))
        LocalContext.event_id.set("mine")
        attributions.attribution(image_path, *NAMES, CAPTION, 3, "occlusion", jobs.stoppable(report))

    with pytest.raises(gr.Error, match="Stopped"):
        copy_context().run(explain)
    assert 0.1 < shares[-1] < 0.5
    assert models.turn.acquire(blocking=False)
    models.turn.release()


def test_other_requests_run_between_the_steps_of_a_job():
    began, got_in = threading.Event(), threading.Event()

    def other():
        began.wait(5)
        with models.turn:
            got_in.set()

    visitor = threading.Thread(target=other)
    visitor.start()
    with jobs.turns(lambda share: began.set() or got_in.wait(5)) as step:
        assert not got_in.is_set()
        step(0.5)
        assert got_in.is_set()
    visitor.join(5)


def test_a_job_ends_at_its_time_limit(monkeypatch):
    with jobs.turns() as step:
        step(0.5)
    monkeypatch.setattr(jobs, "LIMIT_S", -1)
    with pytest.raises(UserError, match="limit of -1 seconds"), jobs.turns() as step:
        step(0.5)
    assert models.turn.acquire(blocking=False)
    models.turn.release()
