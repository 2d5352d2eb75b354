"""Workarounds for gradio: requests to cancel end one event, whether or not the page knows its id."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from app import gradio_workarounds
from tests.helpers import run_in_thread


def event(session: str, function: int) -> SimpleNamespace:
    return SimpleNamespace(session_hash=session, fn=SimpleNamespace(_id=function), alive=True)


def test_an_event_is_cancelled_before_its_page_knows_the_id(monkeypatch):
    """Also if it arrives after the request to cancel it."""

    async def visit():
        async def cancelled(**request):
            return json.loads(await gradio_workarounds.cancel_one(queue, json.dumps(request).encode()))["event_id"]

        assert await cancelled(event_id=None, session_hash="mine", fn_index=3) == "first"
        assert await cancelled(event_id=None, session_hash="mine", fn_index=3) == "second"
        assert await cancelled(event_id="other", session_hash="mine", fn_index=3) == "other"
        assert await cancelled(event_id=None) == ""  # a reset
        waiting = asyncio.create_task(cancelled(event_id=None, session_hash="mine", fn_index=5))
        await asyncio.sleep(0.05)
        events["late"] = event("mine", 5)
        assert await waiting == "late"
        monkeypatch.setattr(gradio_workarounds, "UNSENT_S", 0.05)
        assert await cancelled(event_id=None, session_hash="nobody", fn_index=3) == ""

    events = {"another function": event("mine", 4), "first": event("mine", 3), "second": event("mine", 3)}
    events["another session"] = event("others", 3)
    queue = SimpleNamespace(event_ids_to_events=events)
    run_in_thread(visit())
    assert [name for name, one in events.items() if one.alive] == ["another function", "another session"]


def test_a_request_to_cancel_ends_no_other_event_of_the_function():
    async def visit():
        request = dict(event_id="old", session_hash="mine", fn_index=3)
        body = await gradio_workarounds.cancel_one(
            SimpleNamespace(event_ids_to_events=events), json.dumps(request).encode()
        )
        assert json.loads(body) == request | {"fn_index": -1}  # gradio ends all events of a function

    events = {"old": event("mine", 3), "new": event("mine", 3)}
    run_in_thread(visit())
    assert not events["old"].alive and events["new"].alive


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"[]", b"7", b"null", b'"event_id"', b"{}", b"\xff", b'{"event_id": ["a"]}'],
)
def test_malformed_requests_to_cancel_stay_unchanged(body):
    async def visit():
        assert await gradio_workarounds.cancel_one(SimpleNamespace(event_ids_to_events={}), body) == body

    run_in_thread(visit())
